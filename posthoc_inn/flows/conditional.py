"""t: the conditional flow between latents and invariances, given a representation (MSC eq. 1-5, A.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Self

import torch
from torch import Tensor, nn

from posthoc_inn.config import LINEAR, ConditionerConfig, FlowConfig
from posthoc_inn.errors import ConfigError, NotFittedError, ShapeError
from posthoc_inn.flows.block import CouplingFactory
from posthoc_inn.flows.conditioner import Conditioner, Standardization
from posthoc_inn.flows.coupling import Context, ProjectedContext, check_context, check_width
from posthoc_inn.flows.coupling_flow import CouplingFlow, evaluating
from posthoc_inn.flows.factor import FactorFlow
from posthoc_inn.flows.fast import inverse as fast_inverse
from posthoc_inn.flows.linear import LinearGaussian
from posthoc_inn.flows.linear_fit import LinearFit, fit_rows
from posthoc_inn.flows.pictures import Encoder, PictureNet
from posthoc_inn.objectives import drawn

Row = tuple[Tensor, Tensor, Tensor]
"""z (B, *z_shape), mean (B, D) and deviation (B, D) of z_bar."""


PICTURES_CHUNK = 128
"""Pictures that are looked for, and encoded, at a time."""
CONTEXT_CHUNK = 512
"""Representations that are embedded at a time."""
BASE_CHUNK = 4096
"""Latents that go through e⁻¹ at a time."""


class ConditionalFlow(nn.Module):
    """t and its embedding H: v = t(z_bar | H(z)), z_bar = t⁻¹(v | H(z)).

    The context is computed explicitly, once, and is an ordinary tensor: `t.context(z)`. For many samples an
    image, `t.project(context.unsqueeze(1))` also computes every coupling's share of it once.

    Of the kind "linear" t is a linear Gaussian model in closed form, and there is no H; of a kind such as
    "linear+affine" the blocks work on what that model leaves, and start as the identity. The context then has (or
    ends with) what the model expects given z, of width D.

    Of a kind such as "pictures+affine" that model is linear in something else: a network finds the picture in z, and
    the autoencoder's encoder says what z_bar it has. An early layer shows its picture all but whole, and what the
    encoder took long to learn need not be learned from z anew. What is expected depends on z alone: the density stays
    exact.

    Args:
        flow: Shape of t; its `context_dim` is that of H.
        conditioner: Shape of H.
        coupling: As in `CouplingFlow`.
        base: A trained e, see `set_base`.

    Attributes:
        base: e, or None.
        linear: The linear Gaussian model that t starts with, or None.
        pictures: The network that finds the picture in z, or None.

    Raises:
        ConfigError: The two configurations disagree about the width of the context, or of the latents.

    >>> config = FlowConfig(dim=4, context_dim=8, blocks=2, width=16)
    >>> t = ConditionalFlow(config, ConditionerConfig(z_shape=(5,), context_dim=8, width=16))
    >>> z_bar, z = torch.randn(300, 4), torch.randn(300, 5)
    >>> t.conditioner.fit_standardization([z])
    >>> t.initialize(z_bar, z)
    >>> context = t.context(z)
    >>> v, log_det = t(z_bar, context)
    >>> bool(torch.allclose(t.inverse(v, context), z_bar, atol=1e-4)), log_det.shape
    (True, torch.Size([300]))
    >>> shared = t.project(context[:2].unsqueeze(1))
    >>> t.inverse(torch.randn(2, 7, 4), shared).shape  # 7 samples for each of 2 images
    torch.Size([2, 7, 4])
    """

    def __init__(
        self,
        flow: FlowConfig,
        conditioner: ConditionerConfig,
        *,
        coupling: CouplingFactory | None = None,
        base: FactorFlow | None = None,
    ) -> None:
        super().__init__()
        if flow.context_dim != conditioner.context_dim:
            raise ConfigError(
                f"The flow takes a context of width {flow.context_dim}, the conditioner makes one of width "
                f"{conditioner.context_dim}; give both the same context_dim."
            )
        self.conditioner = Standardization(conditioner) if flow.coupling is None else Conditioner(conditioner)
        self.pictures = PictureNet(conditioner).requires_grad_(False) if flow.is_pictures_first else None
        self.linear: LinearGaussian | None = None
        if flow.is_linear_first or flow.is_pictures_first:
            self.linear = LinearGaussian(flow.dim, conditioner.z_shape if flow.is_linear_first else (flow.dim,))
        self.set_encoder(None)
        self.flow = CouplingFlow(flow, coupling=coupling)
        self.base: FactorFlow | None = None
        if base is not None:
            self.set_base(base)

    def set_base(self, base: FactorFlow) -> None:
        """Let t work on the factors of a trained e: v = s(e(z_bar) | H(z)), s being the blocks of t.

        e is not trained any further. t can be any conditional flow as before, but where z says nothing about a factor,
        s need not touch it, so that the same v stands for the same concept at every z. Without this, t is free to
        turn v in another way for each z, which leaves its likelihood as it is, and raises MSC eq. 20.

        Raises:
            ConfigError: e is for latents of another width.
            NotFittedError: e was never fitted.
        """
        if base.config.dim != self.flow.config.dim:
            raise ConfigError(
                f"e takes {base.config.dim} values, t {self.flow.config.dim}; they need the same latents."
            )
        if not base.is_initialized:
            raise NotFittedError("e was never fitted: fit it before t is to work on its factors.")
        self.base = base.requires_grad_(False).eval()

    def set_encoder(self, encoder: Encoder | None) -> None:
        """Tell t whose latents it is for, where it starts from pictures: the autoencoder, trained, which it shares.

        It is no part of t: neither trained, moved nor saved with it.
        """
        self.__dict__["_encoder"] = encoder

    def train(self, mode: bool = True) -> Self:
        """Switch between training and use, as any module does; e stays as it is in use."""
        super().train(mode)
        for part in (self.base, self.pictures):
            if part is not None:
                part.eval()
        return self

    @property
    def is_initialized(self) -> bool:
        """Whether the standardisation of z, the linear model and the actnorm layers were set from data."""
        is_linear_set = self.linear is None or self.linear.is_initialized
        return self.conditioner.is_initialized and is_linear_set and self.flow.is_initialized

    @property
    def is_trained(self) -> bool:
        """Whether there is anything to train: the linear t is fitted in closed form."""
        return bool(self.flow.blocks)

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        return self.conditioner.z_mean.device

    @property
    def context_dim(self) -> int:
        """C, the width of a context: that of H(z), and of what the linear model expects, where there are such."""
        config = self.flow.config
        return (config.context_dim if self.is_trained else 0) + (0 if self.linear is None else config.dim)

    def context(self, z: Tensor, expected: Tensor | None = None) -> Tensor:
        """Return h = H(z), shape (B, C), for z (B, *z_shape) (MSC eq. 16).

        Args:
            z: Representations.
            expected: What the linear model is to expect, (B, D), in place of what it expects itself; see `left_out`.

        Raises:
            ShapeError: z has another shape.
            NotFittedError: The standardisation of z was not fitted.
        """
        parts: list[Tensor] = [self.conditioner(z)] if self.is_trained else []
        if self.linear is not None and expected is not None:
            parts.append(expected.to(self.linear.mean))
        elif self.linear is not None:
            lead = z.shape[: z.ndim - len(self.conditioner.config.z_shape)]
            rows = z.reshape(-1, *self.conditioner.config.z_shape)
            parts.append(self.linear.expected_of(self.linear_features(rows)).reshape(*lead, -1))
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]

    def linear_features(self, z: Tensor) -> Tensor:
        """Return what t's linear model is linear in, (B, P), for z (B, *z_shape), which is not standardised.

        Raises:
            ConfigError: This t has no linear model.
            NotFittedError: The standardisation of z was not fitted, or it was not told which encoder to ask.
            ShapeError: z has another shape.
        """
        linear = self._its_linear()
        if self.pictures is None:
            return linear.features(self.conditioner.standardize(z))
        # Nothing here is trained with t: without a gradient of z there is none.
        with torch.set_grad_enabled(torch.is_grad_enabled() and z.requires_grad):
            mean = self.from_pictures(z).to(linear.weight)
            return mean if self.base is None else torch.cat(self.base(mean)[0], dim=-1)

    def from_pictures(self, z: Tensor) -> Tensor:
        """Return the encoder's mean of z_bar, (B, D), for the pictures found in z (B, *z_shape).

        Raises:
            ConfigError: This t does not look for pictures.
            NotFittedError: The standardisation of z was not fitted, or it was not told which encoder to ask.
            ShapeError: z has another shape.
        """
        if self.pictures is None:
            raise ConfigError(f"A t of the kind {self.flow.config.kind!r} does not look for pictures in z.")
        # A few at a time: pictures are larger than what is made of them.
        parts = z.split(PICTURES_CHUNK) if len(z) else (z,)
        encode = self.asked().encode
        shown = (self.pictures(self.conditioner.standardize(part)) for part in parts)
        return torch.cat([encode(pictures)[0] for pictures in shown])

    @property
    def picture_shape(self) -> tuple[int, ...]:
        """C, S, S of the pictures that are looked for in z; empty where none are."""
        return self.conditioner.config.picture_shape

    def asked(self) -> Encoder:
        """Return the encoder that was told with `set_encoder`.

        Raises:
            NotFittedError: None was.
        """
        found: Encoder | None = self.__dict__["_encoder"]
        if found is None:
            raise NotFittedError("This t looks for pictures in z, and has no encoder to ask: call set_encoder first.")
        return found

    def _its_linear(self) -> LinearGaussian:
        if self.linear is None:
            raise ConfigError(f"A t of the kind {self.flow.config.kind!r} has no linear model; use a kind that has.")
        return self.linear

    def _parted(self, context: Context) -> tuple[Context, Tensor | None]:
        """Return what of a context the blocks get, and what the linear model expects."""
        if self.linear is None:
            return context, None
        if isinstance(context, ProjectedContext):
            return ProjectedContext(context.terms[:-1], context.lead), context.terms[-1]
        check_context(context, self.context_dim)
        assert context is not None
        own, m = context.split([self.context_dim - self.linear.dim, self.linear.dim], dim=-1)
        return (own if self.is_trained else None), m

    def project(self, context: Tensor) -> ProjectedContext:
        """Return what may be passed instead of `context` (..., C): see `CouplingFlow.project`.

        Raises:
            ShapeError: The context is not (..., C).
        """
        own, m = self._parted(context)
        projected = ProjectedContext((), context.shape[:-1]) if own is None else self.flow.project(own)  # type: ignore[arg-type]
        return projected if m is None else ProjectedContext((*projected.terms, m), projected.lead)

    def forward(self, z_bar: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Map latents `z_bar` (..., D) to invariances v (..., D), with log_det (...) in nats (MSC eq. 5).

        Raises:
            ShapeError: A shape does not fit.
            NotFittedError: The flow was not initialised.
        """
        own, m = self._parted(context)
        x, before = z_bar, []
        if self.base is not None:
            factors, log_det = self.base(x)
            x, before = torch.cat(factors, dim=-1), [log_det]
        if self.linear is not None and m is not None:
            x, log_det = self.linear(x, m)
            before.append(log_det)
        v, log_det = self.flow(x, own)
        return v, sum(before, log_det)

    def inverse(self, v: Tensor, context: Context) -> Tensor:
        """Map invariances `v` (..., D) to latents (..., D) (MSC eq. 2).

        Raises:
            ShapeError: A shape does not fit.
            NotFittedError: The flow was not initialised.
        """
        out = self.blocks_inverse(v, context)
        return out if self.base is None else self.base.inverse(out)

    def blocks_inverse(self, v: Tensor, context: Context) -> Tensor:
        """Map invariances `v` (..., D) back through all but e: to e's factors, or to latents without e."""
        own, m = self._parted(context)
        out = self.flow.inverse(v, own)
        return out if self.linear is None or m is None else self.linear.inverse(out, m)

    @torch.no_grad()
    def inverse_many(self, v: Tensor, context: Tensor) -> Tensor:
        """Return t⁻¹(v given z), shape (B, N, D), for N samples of each of B images, without gradients.

        Runs in chunks: memory beyond the result is bounded whatever N is. What depends on z alone is computed once
        an image. Products run in the precision given by `set_compute_dtype`.

        Args:
            v: Invariances (B, N, D), on any device.
            context: H(z), shape (B, C).

        Raises:
            ShapeError: A shape does not fit.
            NotFittedError: The flow was not initialised.
        """
        config = self.flow.config
        check_width(v, config.dim, "v")
        check_context(context, self.context_dim)
        if v.ndim != 3 or context.ndim != 2 or len(v) != len(context):
            raise ShapeError(
                f"v has shape {tuple(v.shape)} and the context {tuple(context.shape)}; accepted are "
                f"(B, N, {config.dim}) and (B, {self.context_dim}) with the same B."
            )
        with evaluating(self):
            own, m = self._parted(context)
            out = self._many_blocks_inverse(v, own) if self.is_trained else v.to(m, copy=True)  # type: ignore[arg-type]
            if self.linear is not None and m is not None:
                together = max(1, BASE_CHUNK // max(v.shape[1], 1))
                for rows, expected in zip(out.split(together), m.to(out.device).split(together), strict=True):
                    rows.copy_(self.linear.inverse(rows, expected.unsqueeze(1)))
            if self.base is not None:
                for rows in out.flatten(0, 1).split(BASE_CHUNK):
                    rows.copy_(self.base.inverse(rows))
            return out

    def _many_blocks_inverse(self, v: Tensor, context: Tensor) -> Tensor:
        if self.flow.is_affine:
            return fast_inverse.inverse(self.flow.config, self.flow.parts(), v, context)
        parameter = next(self.flow.parameters())
        out = torch.empty(v.shape, dtype=parameter.dtype, device=parameter.device)
        together = max(1, fast_inverse.CHUNK // max(v.shape[1], 1))
        for start in range(0, len(v), together):
            rows = slice(start, start + together)
            projected = self.flow.project(context[rows].unsqueeze(1).to(parameter.device))
            for first in range(0, v.shape[1], fast_inverse.CHUNK):
                draws = slice(first, first + fast_inverse.CHUNK)
                out[rows, draws] = self.flow.inverse(v[rows, draws].to(parameter.device), projected)
        return out

    @torch.no_grad()
    def initialize(self, z_bar: Tensor, z: Tensor, *, force: bool = False) -> None:
        """Set every actnorm from latents `z_bar` (B, D) and their `z` (B, *z_shape), 256 rows or more.

        The standardisation of z is fitted beforehand, on as much data as there is:
        `flow.conditioner.fit_standardization(batches)`. On the factors of e, which are standard normal by design, the
        blocks start as the identity: a few outliers would decide the scales otherwise. So they do after the linear
        model, which is fitted before (`fit_linear`); the linear t has nothing to initialise.

        Raises:
            NotFittedError: The standardisation of z was not fitted.
            ConfigError: It was initialised before, and `force` is false.
            ShapeError: A shape does not fit, or there are fewer than 2 rows.
            DataError: The data hold NaN or infinity.
        """
        if not self.is_trained:
            return
        with evaluating(self):
            # Maps of thousands of images would take gigabytes at once.
            context = torch.cat([self.context(part) for part in z.split(CONTEXT_CHUNK)])
            own, m = self._parted(context)
            if self.linear is not None and m is not None:
                z_bar, _ = self.linear(z_bar, m)
            self.flow.initialize(z_bar, own, force=force)
            if self.base is not None or self.linear is not None:
                for block in self.flow.parts():
                    block.actnorm.initialize_as_identity()

    @torch.no_grad()
    def fit_linear(
        self,
        rows: Callable[[], Iterable[Row]],
        some: Tensor,
        *,
        apart: Callable[[], Iterable[Row]] = tuple,
        seed: int = 0,
    ) -> LinearFit:
        """Fit the linear Gaussian model in closed form, after the standardisation of z, and before `initialize`.

        Args:
            rows: Returns batches of z (B, *z_shape), mean and deviation of z_bar (B, D); memory does not grow with
                their number.
            some: z of some rows, (B, *z_shape), which principal components are found from; `linear_fit.basis_sizes`
                says how many do.
            apart: Returns batches of rows that are none of these, nor copies of them, to choose ridge and shrinkage.
            seed: Of the latents drawn where t works on e's factors; without e nothing is drawn.

        Raises:
            ConfigError: This t has no linear model.
            NotFittedError: The standardisation of z was not fitted.
            ShapeError: A shape does not fit.
            DataError: There are fewer than 2 rows, or values that are not finite.
        """
        linear = self._its_linear()
        generator = torch.Generator().manual_seed(seed)

        def features(z: Tensor) -> Tensor:
            return self.linear_features(z.to(self.conditioner.z_mean)).cpu()

        def batches(given: Callable[[], Iterable[Row]]) -> Iterator[Row]:
            for z, mean, std in given():
                if self.base is None:
                    yield features(z), mean.cpu(), std.cpu()
                    continue
                # e is not linear: what it makes of the encoder's noise is seen in draws.
                factors, _ = self.base(drawn(mean, std, generator).to(self.conditioner.z_mean))
                y = torch.cat(factors, dim=-1).cpu()
                yield features(z), y, torch.zeros_like(y)

        with evaluating(self):
            few = torch.cat([features(part) for part in some.split(CONTEXT_CHUNK)])
            found = fit_rows(batches(rows), few, batches(apart))
        linear.set(found.mean, found.weight, found.scale)
        return found

    @torch.no_grad()
    def left_out(self, z: Tensor, found: LinearFit, index: Tensor) -> Tensor:
        """Return what regressions without a row expect for it, (B, D).

        Where rows are few, those that the linear model was fitted to are closer to it than others: blocks that are
        trained on what is left of them would be far too sure of themselves.

        Args:
            z: Representations of rows of training, (B, *z_shape).
            found: What `fit_linear` returned.
            index: Places of these rows among those it was given, (B,).
        """
        linear = self._its_linear()
        features = self.linear_features(z.to(self.conditioner.z_mean)).cpu()
        folds, out = index % len(found.left_out), torch.empty(len(z), linear.dim)
        for k, (mean, weight) in enumerate(found.left_out):
            here = folds == k
            out[here] = torch.addmm(mean.to(features), features[here], weight.to(features).T).to(out)
        return out

    def linear_part(self) -> ConditionalFlow:
        """Return the linear t for the same z and latents (and e), with this t's model where it has one that is of z.

        >>> t = ConditionalFlow(FlowConfig(dim=4, context_dim=8), ConditionerConfig(z_shape=(5,), context_dim=8))
        >>> t.linear_part().flow.config.kind
        'linear'
        """
        made = ConditionalFlow(self.flow.config.replace(kind=LINEAR), self.conditioner.config, base=self.base)
        made.to(self.conditioner.z_mean)
        own = self.state_dict()
        made.conditioner.load_state_dict({name: own[f"conditioner.{name}"] for name in made.conditioner.state_dict()})
        if self.linear is not None and self.pictures is None and made.linear is not None:
            made.linear.load_state_dict(self.linear.state_dict())
        return made.eval()
