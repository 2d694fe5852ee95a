"""Which pairs shares are measured on after a fit: held-out ones, or training ones; and images are counted, not rows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from posthoc_inn.concepts import AttributeSource, ConceptModel, GivenPairs
from posthoc_inn.config import FlowConfig
from posthoc_inn.fit.binding import ConceptRequest, bind
from posthoc_inn.fit.pair_shares import shares_of_fit
from posthoc_inn.flows import FactorFlow
from posthoc_inn.rows.cache import Cache

PIPELINE = SimpleNamespace(
    latent_dim=3,
    extractor=SimpleNamespace(layer="layer"),
    context=lambda z: z,
    sample_latents=lambda context, v: context[:, None] * torch.tensor([0.0, 1.0, 0.0]) + 0.1 * v,
)


def e():
    flow = FactorFlow(FlowConfig(dim=3, blocks=1, width=4), (1, 2), aligned=True)
    flow.align(torch.zeros(3), torch.eye(3))
    return ConceptModel(flow.eval(), ("a",))


def cache(labels, copies=1, seed=0):
    """A z that is the label; latents that hold it in one dimension."""
    label = labels.repeat(copies).float()
    mean = torch.randn(len(label), 3, generator=torch.Generator().manual_seed(seed)) * 0.1
    mean[:, 1] += label
    found = Cache()
    found.append(
        z=label[:, None], mean=mean, std=torch.full_like(mean, 0.01), image=torch.arange(len(labels)).repeat(copies)
    )
    return found


def test_held_out_pairs_are_taken_where_there_are_any_and_draws_of_an_image_are_one():
    labels = torch.arange(60) % 3
    train, held_out = cache(labels, seed=1), cache(labels[:45], copies=2)
    source = AttributeSource({"a": labels})
    request = ConceptRequest(source, AttributeSource({"a": labels[:45]}))
    bound = bind(request, train, held_out)
    found = shares_of_fit(PIPELINE, e(), (bound.held_out, held_out), (bound.source, (train,)), seed=0)
    assert found.are_held_out
    assert found.images == 45
    assert found["a"].is_learned
    assert found["a"].value == pytest.approx(1, abs=0.05)
    assert found["a"].quality.probe.own == pytest.approx(1, abs=0.05)


def test_training_pairs_are_taken_where_nothing_is_known_of_others_and_that_is_said():
    labels = torch.arange(60) % 3
    train, extra, held_out = cache(labels[:40]), cache(labels[40:], seed=2), cache(labels[:9], seed=3)
    by_label = [torch.combinations(torch.arange(60)[labels == k]) for k in range(3)]
    source = GivenPairs({"a": torch.cat(by_label)})
    request = ConceptRequest(source, length=40)
    bound = bind(request, train, held_out, extra)
    assert bound.held_out is None
    found = shares_of_fit(PIPELINE, e(), None, (bound.source, (train, extra)), seed=0)
    assert not found.are_held_out
    assert "training images" in found.caption
    assert found.images == 60
    assert found["a"].value == pytest.approx(1, abs=0.05)
