"""What a layer sees of one image with what it ignores of another: D(t⁻¹(v of one given z of the other))."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from posthoc_inn.analysis.comparable import ROWS, as_given, class_name, classify, contexts, to_canonical
from posthoc_inn.analysis.results import Result, share_with_error
from posthoc_inn.autoencoders.base import CHUNK
from posthoc_inn.errors import ConfigError, ShapeError
from posthoc_inn.images.adapter import InputAdapter
from posthoc_inn.images.spec import check_canonical
from posthoc_inn.pipeline import Pipeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 8
"""Rows and columns in a figure."""


@dataclass(frozen=True)
class Recombination(Result):
    """A grid of pictures: rows take z, what the layer sees, columns take v, what it ignores.

    Agreements are nan when the model gives no class scores. Cells count as contested where the model predicts
    different classes for the row's and the column's image: only they tell z from v.

    Attributes:
        rows: R, images that gave z.
        columns: K, images that gave v.
        agreement: Share of cells for which the model predicts what it predicts for the row's image.
        agreement_error: Its standard error over rows.
        contested: Number of contested cells.
        follows_z: Of these, the share for which it predicts what it predicts for the row's image.
        follows_v: Of these, the share for which it predicts what it predicts for the column's image.
        similarity_to_z: Cosine similarity of Φ(picture) to z of the row's image, mean over cells whose two images are
            different ones.
        similarity_to_v: The same to z of the column's image.
        z_predictions: What the model predicts for the rows' images; empty when it is no classifier.
        v_predictions: The same for the columns' images.
        predictions: The same for the cells, row by row.
        class_names: Names of the classes; empty for numbers.
        pictures: (R, K, C, H, W) in [0, 1].
        z_images: The rows' images as the autoencoder sees them, (R, C, H, W).
        v_images: The columns' images, (K, C, H, W).
    """

    rows: int
    columns: int
    agreement: float
    agreement_error: float
    contested: int
    follows_z: float
    follows_v: float
    similarity_to_z: float
    similarity_to_v: float
    z_predictions: tuple[int, ...]
    v_predictions: tuple[int, ...]
    predictions: tuple[tuple[int, ...], ...]
    class_names: tuple[str, ...]
    pictures: Tensor = field(repr=False, compare=False)
    z_images: Tensor = field(repr=False, compare=False)
    v_images: Tensor = field(repr=False, compare=False)

    @property
    def caption(self) -> str:
        """What to conclude, and what not."""
        parts = [
            "Each picture combines what the layer sees of the image on the left (z) with what it ignores of the image "
            "above (v). What stays the same along a row, the layer keeps; what stays the same down a column hardly "
            "changes its features."
        ]
        if self.z_predictions:
            parts.append(
                f"For {100 * self.agreement:.0f} % of the {self.rows * self.columns} pictures the model predicts what "
                "it predicts for the image on the left."
            )
        if self.contested:
            parts.append(
                f"Where the two images differ in class ({self.contested} pictures), it follows z in "
                f"{100 * self.follows_z:.0f} % and v in {100 * self.follows_v:.0f} %."
            )
        parts.append(
            "What not to conclude: that the same v means the same content at every z. A t as good as this one may use "
            "another v for that content at another z."
        )
        return " ".join(parts)

    def figure(self, rows: int = SHOWN, columns: int = SHOWN) -> Figure:
        """Draw the first rows and columns; predictions that differ from the row's image are red."""
        from posthoc_inn.drawing import Column, grid

        n, k = min(rows, self.rows), min(columns, self.columns)
        corner = torch.full_like(self.z_images[:1], math.nan)

        def name(label: int) -> str:
            return class_name(label, self.class_names)

        left = ["", *map(name, self.z_predictions[:n])] if self.z_predictions else []
        drawn = [Column(torch.cat([corner, self.z_images[:n]]), "", left)]
        for j in range(k):
            labels, marked = [], []
            if self.z_predictions:
                found = [self.predictions[i][j] for i in range(n)]
                labels = [name(self.v_predictions[j]), *map(name, found)]
                marked = [False, *(a != b for a, b in zip(found, self.z_predictions, strict=False))]
            pictures = torch.cat([self.v_images[j : j + 1], self.pictures[:n, j]])
            drawn.append(Column(pictures, "", labels, marked, gap=j == 0))
        note = ["What the layer sees (z) of the image on the left,", "with what it ignores (v) of the image above."]
        if self.z_predictions:
            note += [
                "Below: the model's prediction, in red where it is",
                "not that for the image on the left.",
            ]
        return grid(drawn, row_labels=["v of", *(["z of"] * n)], note="\n".join(note), inch=0.86)


@torch.no_grad()
def recombine(
    pipeline: Pipeline, z_of: Tensor, v_of: Tensor | None = None, *, class_names: Sequence[str] = ()
) -> Recombination:
    """Return D(t⁻¹(v_j given z_i)) for every pair, and what the model predicts for each.

    v = t(E(x) given Φ(x)) at the mean of the encoder. Memory holds the pictures and the columns' z, and
    beyond them is bounded.

    Args:
        pipeline: The fitted parts.
        z_of: Images whose z makes the rows, as given to `fit`, (R, C, H, W).
        v_of: Images whose v makes the columns, (K, C, H, W); None for those of `z_of`.
        class_names: Names of the classes, for the figure.

    Raises:
        DataError: The images do not lie in [0, 1].
        ShapeError: They are no batch of images.
    """
    adapter = pipeline.adapter
    rows = as_given(adapter, to_canonical(adapter, z_of))
    columns = rows if v_of is None else as_given(adapter, to_canonical(adapter, v_of))
    row_context = contexts(pipeline, rows)
    v = _ignored(pipeline, columns)
    outputs = [pipeline.ask(part) for part in (rows, columns)]
    is_classifier = pipeline.extractor.kind_of(outputs[0]) == "classes"
    row_class, column_class = (classify(o, "recombine")[0] for o in outputs) if is_classifier else (None, None)
    column_z = torch.cat([_flat(pipeline, part) for part in columns.split(ROWS)])
    apart = _different(rows, columns)
    pictures, found = [], []
    to_z = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    to_v = torch.zeros_like(to_z)
    for i in range(len(rows)):
        drawn = []
        row_z = _flat(pipeline, rows[i : i + 1])
        for start in range(0, len(columns), CHUNK):
            part = slice(start, start + CHUNK)
            latents = pipeline.sample_latents(row_context[i : i + 1], v[None, part])[0]
            drawn.append(pipeline.decode(latents).cpu())
            seen, output = pipeline.ask_model(drawn[-1])
            seen = seen.flatten(1).float().cpu()
            to_z[i, part] = F.cosine_similarity(seen, row_z, dim=1)
            to_v[i, part] = F.cosine_similarity(seen, column_z[part], dim=1)
            if is_classifier:
                found.append(classify(output, "recombine")[0])
        pictures.append(torch.cat(drawn))
    classes = torch.cat(found) if found else None
    return Recombination(
        rows=len(rows),
        columns=len(columns),
        **_verdict(classes, row_class, column_class),
        similarity_to_z=float(to_z[apart].mean()) if apart.any() else math.nan,
        similarity_to_v=float(to_v[apart].mean()) if apart.any() else math.nan,
        z_predictions=tuple(row_class.tolist()) if row_class is not None else (),
        v_predictions=tuple(column_class.tolist()) if column_class is not None else (),
        class_names=tuple(class_names),
        pictures=torch.stack(pictures),
        z_images=_pictures(pipeline, rows),
        v_images=_pictures(pipeline, columns),
    )


def _different(rows: Tensor, columns: Tensor) -> Tensor:
    """Return which pairs are two different images, (R, K): one image says nothing about which the model follows."""
    if rows.shape[1:] != columns.shape[1:]:
        return torch.ones(len(rows), len(columns), dtype=torch.bool)
    return torch.stack([(row != columns).flatten(1).any(1) for row in rows])


def _verdict(classes: Tensor | None, row_class: Tensor | None, column_class: Tensor | None) -> dict[str, Any]:
    """Return which image the model follows, for predicted classes (R * K,), (R,) and (K,); nothing without classes."""
    if classes is None or row_class is None or column_class is None:
        figures = dict.fromkeys(("agreement", "agreement_error", "follows_z", "follows_v"), math.nan)
        return {**figures, "contested": 0, "predictions": ()}
    cells = classes.reshape(len(row_class), len(column_class))
    as_z, as_v = cells == row_class[:, None], cells == column_class
    contested = row_class[:, None] != column_class
    agreement, agreement_error = share_with_error(as_z.double().mean(1).tolist())
    follows_z = follows_v = math.nan
    if contested.any():
        follows_z, follows_v = (float(hits[contested].double().mean()) for hits in (as_z, as_v))
    return {
        "agreement": agreement,
        "agreement_error": agreement_error,
        "contested": int(contested.sum()),
        "follows_z": follows_z,
        "follows_v": follows_v,
        "predictions": tuple(tuple(row) for row in cells.tolist()),
    }


def recombine_frames(
    pipeline: Pipeline,
    image: Tensor,
    frames: Iterable[Tensor],
    *,
    fixed: Literal["v", "z"] = "v",
    canonical: bool = False,
) -> Iterator[Tensor]:
    """Yield a picture (C, H, W) in [0, 1] for each frame, as the frames come: memory does not grow with their number.

    Args:
        pipeline: The fitted parts.
        image: The one image that stays, (C, H, W) or (1, C, H, W), as given to `fit`.
        frames: Images (C, H, W) or batches (B, C, H, W), as given to `fit`; a generator will do.
        fixed: What stays that of `image`: "v", what the layer ignores, so that what it sees is each frame's; or "z".
        canonical: `image` and `frames` are images in [0, 1] of any size, as files hold them (see `read_frames`), even
            if the model was fitted to normalised tensors.

    Raises:
        ConfigError: `fixed` is neither.
        DataError: An image does not lie in [0, 1].
        ShapeError: It is no image. What is wrong with a frame is raised when that frame's turn comes.
    """
    if fixed not in ("v", "z"):
        raise ConfigError(f"recombine_frames: fixed must be 'v' or 'z', got {fixed!r}.")
    given = _given(pipeline.adapter, image, canonical)
    if len(given) != 1:
        raise ShapeError(f"image must be one image (C, H, W), got {tuple(image.shape)}.")
    kept = _ignored(pipeline, given)[:, None] if fixed == "v" else contexts(pipeline, given)

    def pictures() -> Iterator[Tensor]:
        for frame in frames:
            for part in _given(pipeline.adapter, frame, canonical).split(ROWS):
                if fixed == "v":
                    v, context = kept.expand(len(part), -1, -1), contexts(pipeline, part)
                else:
                    v, context = _ignored(pipeline, part)[:, None], kept.expand(len(part), -1)
                yield from pipeline.decode(pipeline.sample_latents(context, v)[:, 0]).cpu()

    return pictures()


def _given(adapter: InputAdapter, images: Tensor, canonical: bool) -> Tensor:
    """Return checked images as a batch of the user's tensors."""
    batch = images[None] if isinstance(images, Tensor) and images.ndim == 3 else images
    if not canonical or adapter.normalization is None:
        return as_given(adapter, to_canonical(adapter, batch))
    check_canonical(batch)
    return adapter.images_to_model(batch)


def _ignored(pipeline: Pipeline, given: Tensor) -> Tensor:
    """Return v = t(E(x) given Φ(x)), shape (B, D)."""
    return pipeline.invariances(pipeline.encode(given)[0], contexts(pipeline, given))[0]


def _flat(pipeline: Pipeline, given: Tensor) -> Tensor:
    """Return z, flat, (B, n)."""
    return pipeline.features(given).flatten(1).float().cpu()


def _pictures(pipeline: Pipeline, given: Tensor) -> Tensor:
    return torch.cat([pipeline.adapter.to_images(part).cpu() for part in given.split(CHUNK)])
