"""Video: a clip frame by frame through a layer, with what it ignores held fixed, and an animation to keep."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from posthoc_inn.analysis import read_frames, recombine_frames, save_animation
from posthoc_inn.analysis.frames import ANIMATIONS
from posthoc_inn.app.answers import Answer, Card, Row, said_of
from posthoc_inn.app.fitted import MAX_BYTES, MAX_PIXELS, FittedLayer, Shown, smaller, told_elsewhere
from posthoc_inn.errors import DataError
from posthoc_inn.images import resize

FRAMES = 60
"""Of a clip that are looked at; what comes after is left out, and said so."""
TURN = 24
"""Frames of the clip that is made of a picture."""
FPS = 12.0
SIDE = 224
"""Pixels of the shorter side of the animation's pictures at least: 28 are too few to be looked at."""

Fixed = Literal["v", "z"]


@dataclass(frozen=True, eq=False)
class Clip:
    """What became of a clip.

    Attributes:
        layer: What saw it.
        frames: As the layer's pictures show them, (N, C, H, W).
        pictures: What the layer sees of them, (N, C, H, W).
        is_cut: Whether the clip had more frames.
    """

    layer: FittedLayer
    frames: Tensor = field(repr=False)
    pictures: Tensor = field(repr=False)
    is_cut: bool = False


def clip_of_file(path: str | Path) -> Iterator[Tensor]:
    """Yield the first frames of a stranger's animation, canonical (C, H, W); one more than `FRAMES` at the most.

    Raises:
        DataError: It is no animation, damaged or too large; the message names it without its folder.
    """
    file = Path(path)
    if file.suffix.lower() not in ANIMATIONS:
        raise DataError(f"{file.name} is no animation that is read: {', '.join(sorted(ANIMATIONS))}.")
    if file.stat().st_size > MAX_BYTES:
        raise DataError(f"{file.name} has more than {MAX_BYTES:,} bytes; make it smaller.")
    try:
        for frame in itertools.islice(read_frames(file, max_pixels=MAX_PIXELS // 10), FRAMES + 1):
            yield smaller(frame[None])[0]
    except DataError as error:
        raise DataError(str(error).replace(str(file), file.name)) from error


def turning(picture: Tensor, frames: int = TURN) -> Iterator[Tensor]:
    """Yield a picture (C, H, W) turning once around its middle, its edges drawn out."""
    for k in range(frames):
        angle = 2 * math.pi * k / frames
        turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
        height, width = picture.shape[-2:]
        turn[0, 1] *= height / width
        turn[1, 0] *= width / height
        where = F.affine_grid(turn[None], [1, *picture.shape], align_corners=False)
        yield F.grid_sample(picture[None], where, padding_mode="border", align_corners=False)[0].clamp(0, 1)


def watch(
    layer: FittedLayer,
    shown: Shown,
    frames: Iterator[Tensor],
    *,
    fixed: Fixed = "v",
    done: Callable[[int], None] | None = None,
) -> Clip:
    """Return what the layer sees of each frame, with what it ignores of one picture; or the other way round.

    Args:
        layer: Whose z is taken.
        shown: The picture that stays.
        frames: Canonical images (C, H, W).
        fixed: What stays that of the picture.
        done: Called with the number of frames that are done.

    Raises:
        DataError: There is no frame, or one is damaged.
    """
    adapter, kept = layer.pipeline.adapter, []

    def given() -> Iterator[Tensor]:
        for k, frame in enumerate(itertools.islice(frames, FRAMES)):
            one = layer.given(Shown("frame", frame))
            kept.append(adapter.to_images(one.to(layer.pipeline.device))[0].cpu())
            if done is not None:
                done(k + 1)
            yield one[0]

    with told_elsewhere():
        pictures = list(recombine_frames(layer.pipeline, layer.given(shown), given(), fixed=fixed))
    if not pictures:
        raise DataError("The clip has no frame.")
    return Clip(layer, torch.stack(kept), torch.stack(pictures), next(frames, None) is not None)


def frame_of(clip: Clip, number: float) -> Answer:
    """Return one frame, counted from 1, beside what the layer sees of it, with the model's answers."""
    k = min(max(int(number), 1), len(clip.frames)) - 1
    layer, pipeline = clip.layer, clip.layer.pipeline
    own = pipeline.ask_model(clip.frames[k : k + 1])[1]
    seen = pipeline.ask_model(clip.pictures[k : k + 1])[1]
    first, second = said_of(layer, own)[0], said_of(layer, seen, own)[0]
    cards = (
        Card(clip.frames[k], f"frame {k + 1}", first.text),
        Card(clip.pictures[k], "what the layer sees of it", second.text, second.mark),
    )
    told = (f"Only the first {FRAMES} frames are shown.",) if clip.is_cut else ()
    return Answer((Row(f"{layer.name}, frame {k + 1} of {len(clip.frames)}", cards),), told)


def written(clip: Clip, path: Path) -> Path:
    """Write both side by side as an animation, and return the path.

    Raises:
        DataError: It cannot be written.
    """
    gap = torch.ones(clip.frames.shape[1], clip.frames.shape[2], max(1, clip.frames.shape[3] // 14))
    pairs = (torch.cat([a, gap, b], dim=2) for a, b in zip(clip.frames, clip.pictures, strict=True))
    save_animation((_enlarged(pair) for pair in pairs), path, FPS)
    return path


def _enlarged(pair: Tensor) -> Tensor:
    times = max(1, round(SIDE / min(pair.shape[-2:])))
    return resize(pair[None], [times * side for side in pair.shape[-2:]], "nearest")[0].clamp(0, 1)
