"""A training step of each stage on copies of its parts, so that it can be timed before anything is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from posthoc_inn.autoencoders import TrainableAutoencoder
from posthoc_inn.fit.concepts import build_factor_flow
from posthoc_inn.fit.faithful import FaithfulLoss, asking
from posthoc_inn.fit.parts import Asked, Parts
from posthoc_inn.fit.pictures import PictureLoss
from posthoc_inn.flows import ConditionalFlow, set_compute_dtype
from posthoc_inn.flows.pictures import PictureNet
from posthoc_inn.training.factors import FactorLoss
from posthoc_inn.training.precision import fabric_for
from posthoc_inn.training.tasks import AutoencoderLoss, FlowLoss


def autoencoder_step(parts: Parts, progress: float = 1.0) -> Callable[[], None]:
    """Return a function that takes one training step of a copy of the autoencoder.

    Args:
        parts: What the step works with.
        progress: Share of the training that is done: a discriminator takes part in the later steps.
    """
    adapter = parts.adapter
    loss = AutoencoderLoss(cast(TrainableAutoencoder, copy.deepcopy(parts.autoencoder)), parts.metric()).train()
    size = parts.config.autoencoder_training.batch_size
    images = torch.zeros(size, adapter.channels, adapter.image_size, adapter.image_size, dtype=torch.uint8)
    images.random_(0, 256, generator=torch.Generator().manual_seed(0))
    noise = torch.zeros(size, parts.config.latent_dim)
    more = () if loss.discriminator is None else (torch.tensor(progress),)
    fabric = fabric_for(parts.device, parts.precision)
    module, optimizer = fabric.setup(loss, torch.optim.Adam(loss.parameters(), fused=True))

    def step() -> None:
        optimizer.zero_grad()
        fabric.backward(module(images.to(parts.device), noise.to(parts.device), *more))
        optimizer.step()

    return step


def concept_step(parts: Parts) -> Callable[[], None]:
    """Return a function that takes one training step of an e of the size that is to be fitted."""
    config, dim = parts.config.concepts, parts.config.latent_dim
    flow = build_factor_flow(config, (dim - 1, 1), parts.config.flow.seed).to(parts.device)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, config.training.batch_size, dim, generator=generator).to(parts.device)
    flow.initialize(a)
    set_compute_dtype(flow, torch.bfloat16 if parts.precision == "bf16" else None)
    loss = FactorLoss(flow, config.rho, learned=config.learn_rho).train()
    optimizer = torch.optim.Adam(loss.parameters(), fused=True)
    shared = torch.tensor([False, True], device=parts.device)

    def step() -> None:
        optimizer.zero_grad()
        loss(a, b, shared).backward()
        optimizer.step()

    return step


def picture_step(parts: Parts, z: Tensor) -> Callable[[], None]:
    """Return a function that takes one step of training what finds pictures in features z (B, *z_shape)."""
    flow = copy.deepcopy(parts.flow)
    size, dim, shape = parts.config.picture_training.batch_size, parts.config.latent_dim, parts.flow.picture_shape
    z = z.float().repeat(-(-size // len(z)), *([1] * (z.ndim - 1)))[:size].to(parts.device)
    flow.conditioner.fit_standardization([z])
    cast(PictureNet, flow.pictures).learn(True)
    loss = PictureLoss(flow, torch.ones(dim, device=parts.device)).train()
    images = torch.zeros(size, *shape, dtype=torch.uint8, device=parts.device)
    mean = torch.zeros(size, dim, device=parts.device)
    fabric = fabric_for(parts.device, "32")
    trained = [p for p in loss.parameters() if p.requires_grad]
    module, optimizer = fabric.setup(loss, torch.optim.Adam(trained, fused=True))

    def step() -> None:
        optimizer.zero_grad()
        fabric.backward(module(z, images, mean))
        optimizer.step()

    return step


def started(parts: Parts, z: Tensor) -> tuple[ConditionalFlow, Tensor, Tensor]:
    """Return a copy of t that could be trained, and the features z and latents (B, D) of a batch."""
    flow = copy.deepcopy(parts.flow)
    size = parts.config.flow_training.batch_size
    z = z.float().repeat(-(-size // len(z)), *([1] * (z.ndim - 1)))[:size].to(parts.device)
    flow.conditioner.fit_standardization([z], force=True)  # t may be trained already
    latents = torch.randn(size, parts.config.latent_dim, generator=torch.Generator().manual_seed(0)).to(parts.device)
    if flow.linear is not None:
        dim = latents.shape[1]
        flow.linear.set(torch.zeros(dim), torch.zeros_like(flow.linear.weight), torch.eye(dim))
    flow.initialize(latents, z, force=True)
    if flow.base is None and parts.learns_concepts:
        # e is not trained yet; it takes as long untrained.
        base = build_factor_flow(parts.config.concepts, (latents.shape[1] - 1, 1), 0).to(parts.device)
        base.initialize(latents)
        flow.set_base(base)
    parts.set_precision(flow)
    return flow, z, latents


def faithful_step(parts: Parts, z: Tensor) -> Callable[[], None]:
    """Return a function that takes one step of training a copy of t by its samples, for features z (B, *z_shape)."""
    flow, z, latents = started(parts, z)
    loss = FaithfulLoss(flow, asking(parts), parts.config.faithful_weight, parts.interaction_weight(flow)).train()
    optimizer = torch.optim.Adam([p for p in loss.parameters() if p.requires_grad], fused=True)
    v = latents[: cast(Asked, parts.faithful).samples].clone()
    pairs = torch.zeros(2, len(latents) // 4 if loss.likelihood.interaction_weight else 0, latents.shape[1]).to(v)
    none = latents[:0]

    def step() -> None:
        optimizer.zero_grad()
        loss(z, latents, torch.ones_like(latents), torch.zeros_like(latents), v, pairs, none).backward()
        optimizer.step()

    return step


def flow_step(parts: Parts, z: Tensor) -> Callable[[], None]:
    """Return a function that takes one training step of a copy of t, for features z (B, *z_shape)."""
    flow, z, latents = started(parts, z)
    size = len(latents)
    loss = FlowLoss(flow, parts.interaction_weight(flow)).train()
    optimizer = torch.optim.Adam([p for p in loss.parameters() if p.requires_grad], fused=True)
    v = None
    if flow.base is not None:
        drawn = torch.randn(2, max(1, size // 4), latents.shape[1], generator=torch.Generator().manual_seed(1))
        v = drawn.to(parts.device)

    def step() -> None:
        optimizer.zero_grad()
        loss(z, latents, torch.ones_like(latents), torch.zeros_like(latents), v).backward()
        optimizer.step()

    return step
