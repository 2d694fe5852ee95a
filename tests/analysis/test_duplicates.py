"""Copies across the split are found where they were planted, and nowhere else."""

from __future__ import annotations

import sys

import pytest
import torch
from sklearn.datasets import load_digits
from small_parts import TINY, network

from posthoc_inn import Interpreter
from posthoc_inn.analysis import duplicates
from posthoc_inn.report import findings
from posthoc_inn.rows.cache import Cache


def cache(mean, **columns):
    found = Cache()
    found.append(mean=mean, **columns)
    return found


def gaussian(n, generator, dim):
    return torch.randn(n, dim, generator=generator)


def curved(n, generator, dim):
    """Points on a surface of three dimensions, of very different density, among `dim`."""
    place = torch.randn(n, 3, generator=generator).exp()
    turn = torch.randn(3, dim, generator=torch.Generator().manual_seed(99))
    return torch.sin(place @ turn) + 0.3 * place @ turn


def clusters(n, generator, dim):
    """Ten heaps, a hundred times as wide as the others some."""
    heap = torch.randint(10, (n,), generator=generator)
    middle = 50 * torch.randn(10, dim, generator=torch.Generator().manual_seed(98))
    return middle[heap] + 10 ** (heap[:, None] / 4.5 - 1) * torch.randn(n, dim, generator=generator)


WORLDS = {
    "plane": (gaussian, 2), "gaussian": (gaussian, 8), "wide": (gaussian, 64), "curved": (curved, 16),
    "clusters": (clusters, 8),
}  # fmt: skip


@pytest.mark.parametrize("world", WORLDS)
def test_none_are_found_where_there_are_none(world):
    make, dim = WORLDS[world]
    alarms = 0
    for seed in range(25):
        generator = torch.Generator().manual_seed(seed)
        found = duplicates(cache(make(1500, generator, dim)), cache(make(300, generator, dim)))
        assert (found.exact, found.compared, found.train) == (0, 300, 1500)
        alarms += found.near > 0
    assert alarms <= 2  # of 25 fits, one in a hundred


@pytest.mark.parametrize("world", [name for name in WORLDS if name != "plane"])  # where nothing is far from all
def test_planted_copies_are_found(world):
    make, dim = WORLDS[world]
    generator = torch.Generator().manual_seed(0)
    train, held_out = make(1500, generator, dim), make(300, generator, dim)
    held_out[:7] = train[100:107]
    near = torch.cdist(train[200:211], train).topk(2, largest=False).values[:, 1:]
    off = torch.randn(11, dim, generator=generator)
    held_out[20:31] = train[200:211] + 0.02 * near * off / off.norm(dim=1, keepdim=True)
    found = duplicates(cache(train), cache(held_out[:150]), cache(held_out[150:]))
    assert (found.exact, found.near) == (7, 11)
    assert found.share == pytest.approx(18 / 300)


def test_the_embedded_digits_have_none():
    pixels = torch.tensor(load_digits().data).float()
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    train, held_out = pixels[order[:1500]], pixels[order[1500:]].clone()
    assert (duplicates(cache(train), cache(held_out)).share) == 0
    held_out[:9] = train[:9] + 0.2 * torch.rand(9, 64, generator=torch.Generator().manual_seed(1))
    assert duplicates(cache(train), cache(held_out)).near == 9


def test_pixels_tell_the_same_from_the_nearly_same():
    generator = torch.Generator().manual_seed(0)
    train, held_out = torch.randn(500, 8, generator=generator), torch.randn(100, 8, generator=generator)
    held_out[:6] = train[:6]
    images = torch.arange(500)[:, None].to(torch.uint8), torch.arange(100)[:, None].to(torch.uint8)
    images[1][:2] += 1
    found = duplicates(cache(train, images=images[0]), cache(held_out, images=images[1]))
    assert (found.exact, found.near) == (4, 2)


def test_copies_that_are_there_many_times_are_found_and_other_draws_are_not_looked_at():
    generator = torch.Generator().manual_seed(0)
    train, held_out = torch.randn(600, 8, generator=generator), torch.randn(100, 8, generator=generator)
    held_out[:3] = train[:3]
    assert duplicates(cache(train.repeat(20, 1)), cache(held_out)).exact == 3
    twice = torch.cat([train, train + 5])
    found = duplicates(cache(twice), cache(held_out + 5), draws=2)
    assert (found.exact, found.train) == (0, 600)


def test_few_images_are_looked_at_for_their_pixels_alone():
    latents = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    found = duplicates(cache(latents), cache(latents[:4] + torch.tensor([[0.0], [0.0], [9.0], [9.0]])))
    assert (found.exact, found.near, found.compared) == (2, None, 4)


def test_large_data_is_compared_in_part(monkeypatch):
    # The function has the module's name.
    monkeypatch.setattr(sys.modules["posthoc_inn.analysis.duplicates"], "WORK", 100 * 8 * 200)
    latents = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    assert duplicates(cache(latents), cache(latents[:100])).train == 200


@pytest.mark.parametrize("copies", [0, 5])
def test_a_fit_counts_and_tells_them(copies):
    images, held_out = (torch.rand(n, 3, 28, 28, generator=torch.Generator().manual_seed(n)) for n in (80, 60))
    held_out[:copies] = images[10 : 10 + copies]
    it = Interpreter(network(), "3", preset=TINY, mean=(0.0,) * 3, std=(1.0,) * 3).fit(images, held_out=held_out)
    assert it.metrics_["duplicates"]["exact"] == copies
    assert any("also in training" in note for note in it.metrics_["notes"]) == (copies > 0)
    (told,) = [f for f in findings(it.metrics_) if f.label == "Also in training"]
    assert told.status == ("poor" if copies else "good")
    assert told.value == ("8.3 %" if copies else "0.0 %")
