"""Squares as the generator makes them (those of FFHQ), and what each network wants cut out of them.

A square has its eyes at (96, 120) and (160, 120) and the corners of its mouth at (104, 182) and (152, 182), in 256
pixels. A network over squares is a crop and the network: whatever makes squares is read in the same way.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

SIDE = 256
POINTS = ((96.0, 120.0), (160.0, 120.0), (104.0, 182.0), (152.0, 182.0))
"""Eyes and mouth corners of a square of 256 pixels, from the left upper corner of its left upper pixel."""
MOBILE_FACE_NET = ((30.3, 51.7), (65.5, 51.5), (33.5, 92.4), (62.7, 92.2))
"""The same where MobileFaceNet wants them, in its 96 x 112 pixels."""
CELEBA = ((34.5, 55.5), (54.0, 55.5), (36.0, 76.0), (52.5, 76.0))
"""The same in aligned files of CelebA at half size."""


def similarity(points: ArrayLike, others: ArrayLike) -> Tensor:
    """Return the map (2, 3) made of turning, scaling and shifting that takes points (N, 2) nearest to others."""
    a, b = np.asarray(points, dtype=float), np.asarray(others, dtype=float)
    one, none = np.ones(len(a)), np.zeros(len(a))
    # x' = c x - s y + t, y' = s x + c y + u
    rows = np.concatenate([np.stack([a[:, 0], -a[:, 1], one, none], 1), np.stack([a[:, 1], a[:, 0], none, one], 1)])
    c, s, t, u = np.linalg.lstsq(rows, np.concatenate([b[:, 0], b[:, 1]]), rcond=None)[0]
    return torch.tensor([[c, -s, t], [s, c, u]], dtype=torch.float32)


def sampling(back: Tensor, size: tuple[int, int], source: tuple[int, int]) -> Tensor:
    """Return `back`, a map (2, 3) from pixels of the crop to those of its source, between [-1, 1] (as `affine_grid`).

    `size` and `source` are heights and widths.
    """
    half = torch.tensor([size[1] / 2, size[0] / 2])
    whole = torch.tensor([source[1] / 2, source[0] / 2])
    linear = back[:, :2] * half / whole[:, None]
    shift = (back[:, :2] @ half + back[:, 2]) / whole - 1
    return torch.cat([linear, shift[:, None]], dim=1)


class Cropped(nn.Module):
    """A network over squares (B, 3, S, S) in [0, 1].

    Args:
        network: Over crops in [0, 1].
        back: From pixels of the crop to those of a square of 256 pixels, (2, 3).
        size: Height and width of the crop.
        scaled: The network wants crops in [-1, 1], nearly: (pixel - 127.5) / 128.
    """

    theta: Tensor

    def __init__(self, network: nn.Module, back: Tensor, size: tuple[int, int], *, scaled: bool = False) -> None:
        super().__init__()
        self.network, self.size, self.scaled = network, size, scaled
        self.register_buffer("theta", sampling(back, size, (SIDE, SIDE)), persistent=False)

    def crop(self, squares: Tensor) -> Tensor:
        """Return crops (B, 3, H, W) in [0, 1]; where the square is much finer it is averaged first."""
        theta = self.theta.to(squares).expand(len(squares), 2, 3)
        step = float(self.theta[0, 0]) * squares.shape[3] / self.size[1]
        if step > 1.5:
            small = round(squares.shape[3] / step)
            squares = F.interpolate(squares, (small, small), mode="bilinear", antialias=True)
        grid = F.affine_grid(theta, [len(squares), 3, *self.size], align_corners=False)
        return F.grid_sample(squares, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)

    def forward(self, squares: Tensor) -> Tensor:
        crops = self.crop(squares)
        out: Tensor = self.network((crops * 255 - 127.5) / 128 if self.scaled else crops)
        return out


def box(left: float, top: float, side: float, pixels: int) -> Tensor:
    """Return the map from a crop of so many pixels a side to this box of the square."""
    scale = side / pixels
    return torch.tensor([[scale, 0.0, left], [0.0, scale, top]])


def mobile_face_net(network: nn.Module) -> Cropped:
    """Return MobileFaceNet over squares."""
    return Cropped(network, similarity(MOBILE_FACE_NET, POINTS), (112, 96), scaled=True)


def recognition(network: nn.Module) -> Cropped:
    """Return the recognition network over squares, with the box that face-api cuts out for it."""
    return Cropped(network, box(50.5, 74.0, 155.0, 150), (150, 150))


def attributes(network: nn.Module) -> Cropped:
    """Return a network of age, gender, expression or landmarks over squares: brows to chin, and a tenth around."""
    return Cropped(network, box(50.0, 78.0, 156.0, 112), (112, 112))


def celeba_squares(files: Tensor) -> Tensor:
    """Return squares (B, 3, 256, 256) of aligned CelebA files (B, 3, 109, 89) in [0, 1], edges drawn out."""
    theta = sampling(similarity(POINTS, CELEBA), (SIDE, SIDE), tuple(files.shape[2:]))
    grid = F.affine_grid(theta.expand(len(files), 2, 3), [len(files), 3, SIDE, SIDE], align_corners=False)
    return F.grid_sample(files, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)
