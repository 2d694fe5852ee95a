"""Pictures that t was never fitted to: photographs, and animals through a face network (MSC B.6, fig. S10)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from photo_faces_parts.crops import SIDE
from photo_faces_parts.judges import embed

SHOWN = 2
"""Pictures of each group in the grid."""


@dataclass
class Samples:
    """Samples for pictures of one group.

    Attributes:
        inputs: The pictures, uint8 (B, 3, S, S).
        made: Their samples, uint8 (B, N, 3, S, S).
    """

    inputs: Tensor
    made: Tensor


def animals(directory: str | Path, number: int, pixels: int = SIDE, seed: int = 0) -> Tensor:
    """Return squares (N, 3, pixels, pixels) in [0, 1] of image files below a directory, cut to their centre."""
    files = sorted(p for p in Path(directory).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise SystemExit(f"{directory} holds no .jpg or .png files.")
    out = []
    for k in np.random.default_rng(seed).permutation(len(files))[:number]:
        with Image.open(files[k]) as image:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            square = image.convert("RGB").crop((left, top, left + side, top + side)).resize((pixels, pixels))
        out.append(torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255)
    return torch.stack(out)


@torch.no_grad()
def measure(
    groups: dict[str, Tensor],
    pipeline: Any,
    draw: Callable[[Tensor], list[tuple[Tensor, Tensor, Tensor]]],
    networks: dict[str, nn.Module],
    thresholds: dict[str, float],
    sampled: int,
) -> tuple[dict[str, dict[str, float]], dict[str, Samples]]:
    """Return, for each group of squares, how far it lies from what t knows, and what samples for it are worth.

    Args:
        groups: Name -> squares (B, 3, S, S) in [0, 1].
        pipeline: t and what belongs to it.
        draw: z (B, *z_shape) to the rounds of samples: latents, pictures (B, N, 3, S, S), z.
        networks: "explained" and "other".
        thresholds: Of distance, for the other network to take two for one person.
        sampled: Pictures of each group that samples are drawn for.
    """
    figures, samples = {}, {}
    usual = float(pipeline.world.distances.median())
    for name, squares in groups.items():
        z = torch.cat([pipeline.features(part) for part in squares.split(25)])
        found = {
            "pictures": len(z),
            "flagged": float(pipeline.world.is_outside(z).double().mean()),
            "distance": float(pipeline.world.distance(z).median()) / usual,
        }
        # z of different pictures of the group: to tell what a cosine is worth here.
        rows = F.normalize(z.flatten(1))
        one, two = torch.triu_indices(len(rows), len(rows), 1)
        found["two pictures"] = float((rows @ rows.T)[one, two].mean())
        rounds = draw(z[:sampled])
        inputs = squares[:sampled]
        owner = {k: embed(network, inputs) for k, network in networks.items()}
        for label, (_, made, _) in (("first", rounds[0]), ("last", rounds[-1])):
            many = {k: rows_.repeat_interleave(made.shape[1], 0) for k, rows_ in owner.items()}
            there = {k: embed(network, made.flatten(0, 1)) for k, network in networks.items()}
            found[f"cosine, {label}"] = float(F.cosine_similarity(there["explained"], many["explained"]).mean())
            distance = (there["other"] - many["other"]).norm(dim=1)
            found[f"same to other, {label}"] = float((distance < thresholds["other"]).double().mean())
        figures[name] = found
        samples[name] = Samples((inputs * 255).round().to(torch.uint8), rounds[-1][1])
    return figures, samples


def save_grid(samples: dict[str, Samples], file: Path, columns: int) -> None:
    """Save a picture: for each group some pictures, each with its samples beside it."""
    rows = [
        torch.cat([part.inputs[k][None], part.made[k, : columns - 1]])
        for part in samples.values()
        for k in range(min(SHOWN, len(part.made)))
    ]
    picture = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, quality=85)


def table(figures: dict[str, dict[str, float]]) -> str:
    """Return the figures as Markdown."""
    lines = [
        "| pictures | flagged as unlike the draws | distance, of the usual draw's | cosine of two pictures | "
        "cosine of samples: round 0, last | same person to the other: round 0, last |",
        "| --- " * 6 + "|",
    ]
    for name, row in figures.items():
        lines.append(
            f"| {name} | {100 * row['flagged']:.0f} % of {row['pictures']} | {row['distance']:.2f} | "
            f"{row['two pictures']:.2f} | {row['cosine, first']:.2f}, {row['cosine, last']:.2f} | "
            f"{100 * row['same to other, first']:.0f} %, {100 * row['same to other, last']:.0f} % |"
        )
    return "\n".join(lines)
