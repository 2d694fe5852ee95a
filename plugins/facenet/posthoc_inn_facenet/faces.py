"""Finds faces in photographs by MTCNN, whose weights facenet-pytorch brings, and cuts out the largest one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from facenet_pytorch import MTCNN, extract_face
from PIL import Image
from torch import Tensor

from posthoc_inn.ambient import in_plain_torch
from posthoc_inn.errors import DataError, Problems, is_count
from posthoc_inn.weights import seeded_init

SIZE, MARGIN, MIN_FACE = 160, 0, 20
"""facenet-pytorch's own: side of the cut-out, pixels of it around the face, side of the smallest face looked for."""


class FaceAligner:
    """Cuts the largest face out of a photograph, as facenet-pytorch's MTCNN does; a transform of a data set.

    One photograph is looked at at a time, so that its face is the same whatever else is aligned.

    Args:
        size: Side of the cut-out in pixels.
        margin: Pixels of the cut-out that are around the face.
        min_face: Side in pixels of the smallest face that is looked for; a larger one is faster.

    >>> aligner = FaceAligner(size=64)
    >>> aligner.cut(Image.new("RGB", (40, 40), "white"))
    (None, 0)
    """

    def __init__(self, size: int = SIZE, margin: int = MARGIN, min_face: int = MIN_FACE) -> None:
        problems = Problems("the alignment of faces")
        problems.check(is_count(size, 16) and size <= 4096, f"size must be 16 to 4096 pixels, got {size!r}")
        problems.check(
            is_count(margin, 0) and (not is_count(size, 16) or margin < size),
            f"margin must be 0 or more pixels, and less than the size, got {margin!r}",
        )
        problems.check(is_count(min_face, 12), f"min_face must be 12 or more pixels, got {min_face!r}")
        problems.raise_if_any()
        self.size, self.margin, self.min_face = size, margin, min_face
        with seeded_init():
            self._detector: Any = MTCNN(min_face_size=min_face, device=torch.device("cpu"))

    @in_plain_torch
    def boxes(self, photograph: Image.Image) -> np.ndarray:
        """Return the boxes (N, 4) of the faces in an RGB photograph: left, top, right, bottom; the largest first.

        Raises:
            DataError: The detector fails over the photograph.
        """
        none = np.zeros((0, 4))
        if min(photograph.size) < self.min_face:
            return none
        try:
            found, _ = self._detector.detect(photograph)
        except (RuntimeError, ValueError, IndexError) as error:
            # facenet-pytorch stumbles over candidates that lie outside the photograph.
            raise DataError(
                f"MTCNN fails over the photograph ({' '.join(str(error).split())[:120]}): leave it out, or cut it."
            ) from error
        if found is None:
            return none
        boxes: np.ndarray = np.asarray(found, dtype=np.float64)
        width, height = photograph.size
        is_inside = (boxes[:, 0] < width - 1) & (boxes[:, 1] < height - 1) & (boxes[:, 2] > 1) & (boxes[:, 3] > 1)
        return boxes[is_inside]

    def cut(self, photograph: Image.Image) -> tuple[Image.Image | None, int]:
        """Return the largest face, RGB of `size` pixels, or None; and how many faces there are.

        Raises:
            DataError: The detector fails over the photograph.
        """
        boxes = self.boxes(photograph)
        if not len(boxes):
            return None, 0
        face: Tensor = extract_face(photograph, boxes[0], self.size, self.margin)
        return Image.fromarray(face.permute(1, 2, 0).to(torch.uint8).numpy()), len(boxes)

    def __call__(self, photograph: Image.Image | Tensor) -> Tensor:
        """Return the largest face (3, size, size) in [0, 1] of a PIL image, or of a tensor (C, H, W) in [0, 1].

        Raises:
            DataError: There is no face.
        """
        image = photograph if isinstance(photograph, Image.Image) else to_picture(photograph)
        face, _ = self.cut(image.convert("RGB"))
        if face is None:
            raise DataError(
                f"There is no face in a photograph of {image.width}x{image.height} pixels. Leave such ones out first: "
                "posthoc-inn align, or posthoc_inn_facenet.align.aligned(photos, out)."
            )
        return torch.from_numpy(np.asarray(face).copy()).permute(2, 0, 1).float().div_(255)


def to_picture(image: Tensor) -> Image.Image:
    """Return an RGB picture of a tensor (C, H, W) in [0, 1], C 1 or 3.

    Raises:
        DataError: It is something else.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.is_floating_point():
        raise DataError(
            f"A photograph is a float tensor (1 or 3, H, W) in [0, 1], got {tuple(image.shape)}, {image.dtype}."
        )
    low, high = float(image.min()), float(image.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise DataError(f"A photograph is in [0, 1], got values from {low:.3g} to {high:.3g}: undo its normalisation.")
    pixels = image.detach().cpu().expand(3, -1, -1).mul(255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
