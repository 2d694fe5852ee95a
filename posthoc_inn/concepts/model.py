"""A fitted e with its factors' names: over the autoencoder's z_bar or a layer's z (IIN section 3, MSC eq. 6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import nan
from typing import Literal

import torch
from torch import Tensor, nn

from posthoc_inn.errors import ConfigError, DataError, Problems, ShapeError, UnknownNameError, listed, quoted, suggest
from posthoc_inn.flows import FactorFlow

RESIDUAL = "residual"
"""Name of factor 0: what no concept describes."""
RANDOM = "(random)"
"""Name of the null concept: a factor trained on pairs that share nothing."""
LONGEST_NAME = 200
"""Letters of a concept's name, which a bundle keeps."""
CHUNK = 4096
"""Rows that go through e at a time."""

Space = Literal["z_bar", "z"]
"""What e is trained on: latents of the autoencoder (pictures), or a layer's representations (network response)."""


def check_names(names: Sequence[object]) -> None:
    """Check what a user calls concepts, before e is trained.

    Raises:
        ConfigError: A name is no text, blank, too long, there twice, or has a meaning of its own.
    """
    problems = Problems("concepts")
    for name in names:
        told = quoted(name)
        if not isinstance(name, str):
            problems.check(False, f"a name must be text, got {told}, of the type {type(name).__name__}")
            continue
        problems.check(bool(name.strip()), f"a name must not be blank, got {told}")
        problems.check(len(name) <= LONGEST_NAME, f"a name has up to {LONGEST_NAME} letters, got {len(name):,}: {told}")
        problems.check(name not in (RESIDUAL, RANDOM), f"{told} means something else here; take another name")
    twice = [name for name, count in Counter(names).items() if count > 1]
    problems.check(not twice, f"a name stands for one concept; there twice: {listed(twice, 3)}")
    problems.raise_if_any()


class ConceptModel(nn.Module):
    """e and the names of its factors e_1 .. e_K; factor 0 is the residual. Works in chunks, without gradients.

    Args:
        flow: e.
        names: Names of e_1 .. e_K, in the order of the flow's factors; () for an unsupervised e (IIN eq. 12).
        space: What it is trained on.
        shape: Shape of one z or z_bar, without the batch.
        is_measured: Whether correlations and deviations are known; `set_moments` makes it so.

    Attributes:
        factor_names: "residual", then `names`.
        factor_dims: Width of each factor, residual first.
        rho: Correlation of each dimension in pairs that share its factor, (D,), as e assumes it; 0 where no pair shares
            it, nan where it is not known.
        deviation: Standard deviation of each dimension over held-out images, (D,): 1 under the model, and so where it
            was not measured. Draws and walks are scaled by it.

    Raises:
        ConfigError: Names and factors, or shape and width, do not fit.

    >>> from posthoc_inn.config import FlowConfig
    >>> e = FactorFlow(FlowConfig(dim=6, blocks=2, width=8), factor_dims=(3, 2, 1))
    >>> z_bar = torch.randn(300, 6)
    >>> e.initialize(z_bar)
    >>> concepts = ConceptModel(e, ("digit", "color"), shape=(6,))
    >>> factors = concepts.factors(z_bar)
    >>> factors[concepts.index("digit")].shape
    torch.Size([300, 2])
    >>> bool(torch.allclose(concepts.inverse(factors), z_bar, atol=1e-4))
    True
    """

    def __init__(
        self,
        flow: FactorFlow,
        names: Sequence[str],
        *,
        space: Space = "z_bar",
        shape: Sequence[int] | None = None,
        is_measured: bool = False,
    ) -> None:
        super().__init__()
        self.flow = flow
        self.names = tuple(names)
        self.space: Space = space
        self.shape = tuple(shape) if shape is not None else (flow.config.dim,)
        self.factor_names = (RESIDUAL, *self.names)
        self.factor_dims = flow.factor_dims
        if len(self.factor_names) != len(self.factor_dims) or len(set(self.factor_names)) != len(self.factor_names):
            raise ConfigError(
                f"e has {len(self.factor_dims)} factors, the residual included; got the names {listed(self.names)}. "
                "Every other factor needs one, different from the others and from 'residual'."
            )
        if torch.Size(self.shape).numel() != flow.config.dim:
            raise ConfigError(f"e takes {flow.config.dim} values, a {space} of shape {self.shape} has another number.")
        self.is_measured = is_measured
        self.rho: Tensor
        self.deviation: Tensor
        # Bundles of an e that was never measured, as all of earlier versions are, do not have them.
        dim = flow.config.dim
        self.register_buffer("rho", torch.full((dim,), 0.0 if is_measured else nan), persistent=is_measured)
        self.register_buffer("deviation", torch.ones(dim), persistent=is_measured)

    def set_moments(self, rho: Tensor, deviation: Tensor) -> None:
        """Set what is known of pairs and of held-out images, see the attributes.

        Args:
            rho: (D,), in (-1, 1).
            deviation: (D,), positive.

        Raises:
            ShapeError: A shape does not fit.
            DataError: A value is out of range, or not finite.
        """
        dim = self.flow.config.dim
        if rho.shape != (dim,) or deviation.shape != (dim,):
            raise ShapeError(
                f"rho and deviation have shapes {tuple(rho.shape)} and {tuple(deviation.shape)}; accepted is ({dim},)."
            )
        is_finite = bool(torch.isfinite(deviation).all())
        if not bool((rho.abs() < 1).all()) or not is_finite or not bool((deviation > 0).all()):
            raise DataError("Correlations must be in (-1, 1), and deviations positive and finite.")
        device = next(self.flow.parameters()).device
        self.is_measured = True
        self.register_buffer("rho", rho.detach().float().to(device, copy=True))
        self.register_buffer("deviation", deviation.detach().float().to(device, copy=True))

    def drawn(self, *lead: int, generator: torch.Generator) -> Tensor:
        """Return draws of all factors, (*lead, D), from N(0, `deviation`²): what e takes images for."""
        return torch.randn(*lead, self.flow.config.dim, generator=generator) * self.deviation.cpu()

    def index(self, name: str | int) -> int:
        """Return the number of a factor, by name.

        Raises:
            UnknownNameError: There is no such factor; the message lists the nearest names.
        """
        if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < len(self.factor_dims):
            return name
        if name not in self.factor_names:
            raise UnknownNameError(f"There is no concept {quoted(name)}. {suggest(str(name), self.factor_names)}")
        return self.factor_names.index(str(name))

    def part(self, name: str | int) -> slice:
        """Return where a factor's values lie in the joined factors (..., D)."""
        number = self.index(name)
        start = sum(self.factor_dims[:number])
        return slice(start, start + self.factor_dims[number])

    @torch.no_grad()
    def joined(self, x: Tensor) -> Tensor:
        """Return e(x), all factors side by side, (..., D), for latents or representations (..., *shape)."""
        lead = self._lead(x)
        rows = x.reshape(-1, self.flow.config.dim)
        device = next(self.flow.parameters()).device
        parts = [torch.cat(self.flow(part.to(device))[0], dim=-1) for part in rows.split(CHUNK)]
        return torch.cat(parts).reshape(*lead, -1)

    def factors(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return e_0 .. e_K, each (..., factor_dims[k]), for latents or representations (..., *shape).

        Raises:
            ShapeError: `x` has another shape.
        """
        return torch.split(self.joined(x), list(self.factor_dims), dim=-1)

    @torch.no_grad()
    def inverse(self, factors: Sequence[Tensor] | Tensor) -> Tensor:
        """Return e⁻¹ of the factors (or of all side by side, (..., D)): (..., *shape).

        Raises:
            ShapeError: Number or widths of the factors do not fit.
        """
        if not isinstance(factors, Tensor):
            found = tuple(f.shape[-1] for f in factors)
            if found != self.factor_dims:
                raise ShapeError(f"The factors have widths {found}; accepted are {self.factor_dims}, residual first.")
            lead = torch.broadcast_shapes(*(f.shape[:-1] for f in factors))
            factors = torch.cat([f.expand(*lead, f.shape[-1]) for f in factors], dim=-1)
        if factors.shape[-1] != self.flow.config.dim:
            raise ShapeError(f"e has {self.flow.config.dim} values an image, got factors {tuple(factors.shape)}.")
        lead = factors.shape[:-1]
        device = next(self.flow.parameters()).device
        rows = factors.reshape(-1, self.flow.config.dim)
        out = torch.cat([self.flow.inverse(part.to(device)) for part in rows.split(CHUNK)])
        return out.reshape(*lead, *self.shape)

    def _lead(self, x: Tensor) -> torch.Size:
        split = x.ndim - len(self.shape)
        if split < 0 or tuple(x.shape[split:]) != self.shape:
            raise ShapeError(
                f"e takes {self.space} of shape (..., {', '.join(map(str, self.shape))}), got {tuple(x.shape)}."
            )
        return x.shape[:split]
