"""The linear Gaussian t: z_bar given z ~ N(mean + W φ(z), L Lᵀ), as an invertible map without anything to train."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from posthoc_inn.errors import NotFittedError, ShapeError
from posthoc_inn.flows.coupling import check_width
from posthoc_inn.flows.fitted import FittedOnce

MOST_FEATURES = 8192
"""Maps and tokens are averaged over neighbours until no more values than this are left, as far as that goes."""
SMALLEST_SCALE = 1e-12
"""What the diagonal of L, and one over it, must be above, for a way back in single precision."""


def pooled(z_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that z of `z_shape` is averaged to before it is flattened.

    >>> pooled((512,)), pooled((64, 56, 56)), pooled((197, 768))
    ((512,), (64, 10, 10), (10, 768))
    """
    if len(z_shape) == 1 or math.prod(z_shape) <= MOST_FEATURES:
        return z_shape
    if len(z_shape) == 2:
        return min(z_shape[0], max(2, MOST_FEATURES // z_shape[1])), z_shape[1]
    channels, *size = z_shape
    by = next(k for k in range(1, max(size) + 1) if k == max(size) or channels * _area(size, k) <= MOST_FEATURES)
    return channels, *(math.ceil(n / by) for n in size)


def _area(size: list[int], by: int) -> int:
    return math.prod(math.ceil(n / by) for n in size)


class LinearGaussian(FittedOnce):
    """v = L⁻¹ (x - m(z)) with m(z) = mean + W φ(z): the likelihood of a linear Gaussian model, exactly.

    φ flattens standardised z, large maps and token sequences averaged over neighbours first (the first token stays).
    `posthoc_inn.flows.linear_fit` sets it in closed form.

    Args:
        dim: D, width of x and v.
        z_shape: Shape of z without the batch.

    >>> linear = LinearGaussian(2, (3,))
    >>> linear.set(torch.ones(2), torch.zeros(2, 3), torch.tensor([[2.0, 0.0], [1.0, 0.5]]))
    >>> m = linear.expected(torch.randn(1, 3))
    >>> v, log_det = linear(torch.tensor([[3.0, 2.0]]), m)
    >>> v.tolist(), abs(log_det.item()), linear.inverse(v, m).tolist()
    ([[1.0, 0.0]], 0.0, [[3.0, 2.0]])
    """

    mean: Tensor
    weight: Tensor
    scale: Tensor

    def __init__(self, dim: int, z_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.dim, self.z_shape, self.pooled_shape = dim, z_shape, pooled(z_shape)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("weight", torch.zeros(dim, math.prod(self.pooled_shape)))
        self.register_buffer("scale", torch.eye(dim))

    @torch.no_grad()
    def set(self, mean: Tensor, weight: Tensor, scale: Tensor) -> None:
        """Set the map.

        Args:
            mean: (D,), of x where φ(z) is 0.
            weight: W, (D, P).
            scale: L, (D, D), lower triangular with a positive diagonal.

        Raises:
            ShapeError: A shape does not fit, or the values make no invertible map.
        """
        for name, given in (("mean", mean), ("weight", weight), ("scale", scale)):
            own: Tensor = getattr(self, name)
            if given.shape != own.shape:
                raise ShapeError(f"{name} has shape {tuple(given.shape)}; accepted is {tuple(own.shape)}.")
            if not bool(torch.isfinite(given).all()):
                raise ShapeError(f"{name} holds NaN or infinity; look at the rows it was fitted to.")
        if not is_scale(scale):
            raise ShapeError("scale must be lower triangular, with a positive diagonal.")
        self.mean.copy_(mean)
        self.weight.copy_(weight)
        self.scale.copy_(scale)
        self._mark_initialized()

    def features(self, z: Tensor) -> Tensor:
        """Return φ(z), (B, P), for standardised z (B, *z_shape)."""
        if self.pooled_shape == self.z_shape:
            return z.flatten(1)
        if len(self.z_shape) == 3:
            return F.adaptive_avg_pool2d(z, (self.pooled_shape[1], self.pooled_shape[2])).flatten(1)
        rest = F.adaptive_avg_pool1d(z[:, 1:].movedim(1, 2), self.pooled_shape[0] - 1).movedim(2, 1)
        return torch.cat([z[:, :1], rest], dim=1).flatten(1)

    def expected(self, z: Tensor) -> Tensor:
        """Return m(z), (B, D), for standardised z (B, *z_shape).

        Raises:
            NotFittedError: The map was not set.
        """
        return self.expected_of(self.features(z.to(self.weight.dtype)))

    def expected_of(self, features: Tensor) -> Tensor:
        """Return m, (B, D), for what it is linear in, (B, P).

        Raises:
            NotFittedError: The map was not set.
        """
        self._check_set()
        return F.linear(features.to(self.weight.dtype), self.weight, self.mean)

    def forward(self, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """Map `x` (..., D) to v (..., D) and log_det (...), in nats, given `m` = m(z), (..., D).

        Raises:
            NotFittedError: The map was not set.
        """
        self._check_set()
        check_width(x, self.dim)
        scale = self._wide(self.scale)
        rest = self._wide(x) - self._wide(m)
        v = torch.linalg.solve_triangular(scale, rest.reshape(-1, self.dim).T, upper=False).T.reshape(rest.shape)
        dtype = self.scale.dtype
        log_det = -scale.diagonal().log().sum()
        return v.to(dtype), log_det.to(torch.promote_types(dtype, torch.float32)).expand(rest.shape[:-1])

    def inverse(self, v: Tensor, m: Tensor) -> Tensor:
        """Map `v` (..., D) back to x (..., D), given `m` = m(z), (..., D).

        Raises:
            NotFittedError: The map was not set.
        """
        self._check_set()
        check_width(v, self.dim, "v")
        return (self._wide(v) @ self._wide(self.scale).T + self._wide(m)).to(self.scale.dtype)

    def _wide(self, x: Tensor) -> Tensor:
        # Latents that are all but linear functions of others make L ill-conditioned. Not every device has float64.
        return x.to(self.scale.device, torch.float32 if self.scale.device.type == "mps" else torch.float64)

    def _check_set(self) -> None:
        if not self.is_initialized:
            raise NotFittedError("The linear map of this flow was not fitted. Call fit_linear, or load its weights.")

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *rest: Any
    ) -> None:
        found = state_dict.get(f"{prefix}scale")
        # A file must not be able to hold a map that has no way back.
        if isinstance(found, Tensor) and found.shape == self.scale.shape and not found.is_meta and not is_scale(found):
            errors: list[str] = rest[2]
            errors.append(f"{prefix}scale is not lower triangular with a positive diagonal")
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *rest)

    def extra_repr(self) -> str:
        """Return the widths and whether it is set, for `print`."""
        return f"{self.weight.shape[1]} -> {self.dim}, initialized={self.is_initialized}"


def is_scale(scale: Tensor) -> bool:
    """Whether a matrix (D, D) is finite, lower triangular, and has a positive diagonal that is not extreme.

    >>> is_scale(torch.eye(2)), is_scale(torch.ones(2, 2)), is_scale(torch.zeros(2, 2))
    (True, False, False)
    """
    wide = scale.detach().cpu().double()
    diagonal = wide.diagonal()
    return bool(
        torch.isfinite(wide).all()
        and torch.equal(wide, wide.tril())
        and diagonal.min() > SMALLEST_SCALE
        and diagonal.max() < 1 / SMALLEST_SCALE
    )
