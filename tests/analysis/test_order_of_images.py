"""Figures do not depend on the order in which images come: a folder has them class by class."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from small_parts import TINY, network
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from posthoc_inn import Interpreter
from posthoc_inn.analysis import model_accuracy
from posthoc_inn.images import BatchSource, some_of
from posthoc_inn.rows.cache import Cache


def by_class(n=400):
    """Dark images, class 0, then bright ones, class 1."""
    noise = torch.rand(n, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(n) >= n // 2).long()
    return 0.5 * noise + 0.5 * labels[:, None, None, None], labels


ORDERS = {
    "sorted": lambda n: torch.arange(n),
    "reversed": lambda n: torch.arange(n).flip(0),
    "shuffled": lambda n: torch.randperm(n, generator=torch.Generator().manual_seed(1)),
}


class Darkness(nn.Module):
    """Right on dark images alone."""

    def forward(self, x):
        return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)


@pytest.mark.parametrize("order", ORDERS)
def test_accuracy_is_that_of_all_images_whatever_their_order(order):
    images, labels = by_class()
    turn = ORDERS[order](len(images))
    found = model_accuracy(Darkness(), BatchSource((images[turn], labels[turn])), limit=100)
    assert found["images"] == 100
    assert found["accuracy"] == pytest.approx(0.5, abs=0.15)  # three standard errors


def test_shares_are_alike_whatever_the_order_of_the_images():
    images, _ = by_class()
    fitted = Interpreter(network(), "3", preset=TINY, mean=(0,) * 3, std=(1,) * 3).fit(images, evaluate=False)
    found = [
        fitted.explained_by_invariances(images[ORDERS[order](len(images))], samples=1200) for order in sorted(ORDERS)
    ]
    assert {f.images for f in found} == {60}
    for one in found:
        assert abs(one.value - found[0].value) < 4 * (one.standard_error + found[0].standard_error)
    z = fitted.pipeline.features(images)
    kept = fitted.pipeline.z_from(None, z, limit=100)
    bright = kept.flatten(1).mean(1) > z.flatten(1).mean()
    assert 0.3 < float(bright.float().mean()) < 0.7


def test_a_fit_tells_the_same_whatever_the_order_of_its_held_out_images(monkeypatch):
    # More than are measured, so that the first of them would be dark ones alone.
    monkeypatch.setattr(sys.modules["posthoc_inn.analysis.measure"], "IMAGES", 60)
    images, labels = by_class(260)
    data = by_class(60)[0]
    found = {}
    for name, order in ORDERS.items():
        turn = order(len(images))
        held_out = images[turn], labels[turn]
        metrics = (
            Interpreter(network(), "3", preset=TINY, mean=(0,) * 3, std=(1,) * 3).fit(data, held_out=held_out).metrics_
        )
        similar, explained = metrics["faithfulness"], metrics["explained_by_invariances"]
        found[name] = {
            "similarity": (similar["similarity"], similar["similarity_error"]),
            "agreement": (similar["agreement"], similar["agreement_error"]),
            "explained": (explained["value"], explained["standard_error"]),
            "nats": (metrics["likelihood"]["held_out"], metrics["likelihood"]["held_out_error"]),
            "autoencoder": (metrics["autoencoder"]["agreement"], metrics["autoencoder"]["agreement_error"]),
        }
        assert metrics["images"]["are_apart"]
    for name in ("sorted", "reversed"):
        for figure, (value, error) in found[name].items():
            other, its_error = found["shuffled"][figure]
            assert abs(value - other) <= 4 * math.hypot(error, its_error) + 1e-6, (name, figure, found)


def test_rows_are_chosen_at_random_and_in_random_order():
    cache = Cache()
    cache.append(z=torch.arange(1000.0)[:, None])
    some = cache.some(100, seed=3)
    assert len(set(some.tolist())) == 100
    assert 350 < float(some.float().mean()) < 650
    assert not torch.equal(some, some.sort().values)
    assert torch.equal(some, cache.some(100, seed=3))
    assert cache.some(None, seed=0).sort().values.tolist() == list(range(1000))


def test_some_of_the_data_is_some_of_every_kind_that_can_be_counted():
    images, labels = by_class()
    for data in (images, (images, labels), DataLoader(list(zip(images, labels, strict=True)), batch_size=32)):
        part = BatchSource(some_of(data, 50, seed=2)).take(400)
        assert len(part["images"]) == 50
        assert 0.25 < float((part["images"].mean((1, 2, 3)) > 0.5).float().mean()) < 0.75
        if part["labels"] is not None:
            assert torch.equal(part["labels"], (part["images"].mean((1, 2, 3)) > 0.5).long())


def test_what_is_no_more_than_asked_for_or_cannot_be_counted_stays_as_it_is():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(by_class(8)[0])

    images, stream = by_class(8)[0], Stream()
    assert some_of(images, 8) is images
    assert some_of(stream, 2) is stream
    limited = BatchSource(images, limit=3)
    assert some_of(limited, 2) is limited
