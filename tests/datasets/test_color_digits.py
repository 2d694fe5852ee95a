"""The embedded data set of coloured digits."""

from __future__ import annotations

import time

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from posthoc_inn.datasets import ColorDigits, ColorizedDigits, colorize
from posthoc_inn.errors import ConfigError, ShapeError


def gray(n=6):
    return torch.randint(0, 256, (n, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def test_the_split_is_fixed_stratified_and_complete():
    train, held_out = ColorDigits(), ColorDigits(train=False)
    assert (len(train), len(held_out)) == (1437, 360)
    again = ColorDigits(train=False, seed=5)
    assert torch.equal(held_out.gray, again.gray)
    shares = torch.bincount(held_out.digits) / (torch.bincount(held_out.digits) + torch.bincount(train.digits))
    assert (shares - 0.2).abs().max() < 0.005


def test_no_image_is_on_both_sides_of_the_split():
    train, held_out = ColorDigits(), ColorDigits(train=False)
    seen = {bytes(g.numpy()) for g in train.gray}
    assert not any(bytes(g.numpy()) in seen for g in held_out.gray)
    assert len(seen) == 1437


def test_digits_have_empty_margins_and_full_strokes():
    data = ColorDigits()
    assert data.gray.shape == (1437, 28, 28)
    edge = torch.cat([data.gray[:, 0], data.gray[:, -1], data.gray[:, :, 0], data.gray[:, :, -1]], 1)
    assert edge.float().mean() < 3
    assert (data.gray.flatten(1).amax(1) > 200).float().mean() > 0.99
    assert 0.1 < data.gray.float().mean() / 255 < 0.35


def test_digits_can_still_be_told_apart():
    train, held_out = ColorDigits(), ColorDigits(train=False)
    a, b = train.gray.flatten(1).float(), held_out.gray.flatten(1).float()
    nearest = torch.cdist(b, a).argmin(1)
    assert (train.digits[nearest] == held_out.digits).float().mean() > 0.95


def test_an_image_is_its_attributes_painted():
    data = ColorizedDigits(gray(), torch.arange(6), seed=2, draws=3)
    assert len(data) == 18
    for i in (0, 7, 17, -1):
        image, label = data[i]
        made_of = data.attributes(i)
        assert label == made_of["digit"] == i % 6
        ink = (data.gray[i % 6].float() / 255)[None]
        want = ink * made_of["foreground"].view(3, 1, 1) + (1 - ink) * made_of["background"].view(3, 1, 1)
        torch.testing.assert_close(image, want)


def test_colours_depend_on_seed_and_position_alone():
    few, many = (ColorizedDigits(gray(), torch.arange(6), seed=4, draws=d) for d in (1, 4))
    assert torch.equal(few.foreground, many.foreground[:6])
    assert torch.equal(few.background, many.background[:6])
    other = ColorizedDigits(gray(), torch.arange(6), seed=5)
    stream = ColorizedDigits(gray(), torch.arange(6), seed=4, stream=1)
    assert not torch.equal(few.foreground, other.foreground)
    assert not torch.equal(few.foreground, stream.foreground)
    before = torch.get_rng_state()
    assert torch.equal(many[20][0], ColorizedDigits(gray(), torch.arange(6), seed=4, draws=4)[20][0])
    assert torch.equal(torch.get_rng_state(), before)


def test_each_draw_has_other_colours():
    data = ColorizedDigits(gray(), torch.arange(6), draws=2)
    assert not torch.equal(data[0][0], data[6][0])
    assert data[0][1] == data[6][1]


def test_foreground_and_background_are_uniform_and_independent():
    data = ColorDigits(draws=10, seed=1)
    colors = torch.cat([data.foreground, data.background], 1).double()
    assert (colors.mean(0) - 0.5).abs().max() < 0.02
    assert (colors.var(0) - 1 / 12).abs().max() < 0.003
    correlation = torch.corrcoef(torch.cat([colors.T, data.digits.double()[None]]))
    assert (correlation - torch.eye(7, dtype=torch.float64)).abs().max() < 0.03


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_gets_whole_batches_in_any_order(workers):
    data = ColorizedDigits(gray(), torch.arange(6), draws=2)
    images, digits = data.tensors()
    order = [3, 11, 0, 7]
    loader = DataLoader(Subset(data, order), batch_size=4, num_workers=workers)
    x, y = next(iter(loader))
    assert torch.equal(x, images[order])
    assert torch.equal(y, digits[order])


def test_bulk_access_agrees_with_single_items():
    data = ColorDigits(train=False, draws=2)
    images, digits = data.tensors()
    assert images.shape == (720, 3, 28, 28)
    assert torch.equal(images[500], data[500][0])
    assert digits[500] == data[500][1]
    bytes_, _ = data.tensors(torch.uint8)
    assert bytes_.dtype == torch.uint8
    assert (bytes_.float() / 255 - images).abs().max() <= 0.5 / 255 + 1e-6


def test_large_numbers_of_draws_cost_little_until_they_are_asked_for():
    big = torch.zeros(60_000, 28, 28, dtype=torch.uint8)
    start = time.perf_counter()
    data = ColorizedDigits(big, torch.zeros(60_000, dtype=torch.long), draws=5)
    items = data.__getitems__(range(299_000, 299_256))
    assert time.perf_counter() - start < 2
    assert len(data) == 300_000
    assert len(items) == 256


def test_colorize_paints_a_batch_from_its_generator_alone():
    strokes = torch.rand(5, 8, 8)
    before = torch.get_rng_state()
    images, foreground, background = colorize(strokes, torch.Generator().manual_seed(0))
    again = colorize(strokes, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert images.shape == (5, 3, 8, 8)
    assert all(torch.equal(a, b) for a, b in zip((images, foreground, background), again, strict=True))
    assert torch.equal(
        colorize(torch.ones(2, 4, 4), torch.Generator())[0][:, :, 0, 0],
        colorize(torch.ones(2, 4, 4), torch.Generator())[1],
    )
    assert colorize(strokes.double(), torch.Generator())[0].dtype == torch.float64


def test_wrong_arguments_are_refused():
    with pytest.raises(ShapeError, match=r"gray must be uint8 \(n, H, W\)"):
        ColorizedDigits(torch.rand(2, 8, 8), torch.arange(2))
    with pytest.raises(ShapeError, match=r"digits must be whole numbers \(6,\)"):
        ColorizedDigits(gray(), torch.arange(5))
    with pytest.raises(ConfigError, match=r"seed must be .*-1; draws must be .*0"):
        ColorizedDigits(gray(), torch.arange(6), seed=-1, draws=0)
    with pytest.raises(ShapeError, match="gray must be floating-point"):
        colorize(gray(), torch.Generator())
    with pytest.raises(ConfigError, match="dtype must be"):
        ColorizedDigits(gray(), torch.arange(6)).tensors(torch.int32)
    with pytest.raises(IndexError, match="There is no item 6"):
        ColorizedDigits(gray(), torch.arange(6))[6]


def test_the_colour_stream_never_changes():
    # Bundles name a seed, not colours: a change of these numbers would silently change what was trained on.
    data = ColorizedDigits(gray(), torch.arange(6), seed=0)
    torch.testing.assert_close(data.foreground[0], torch.tensor(EXPECTED), atol=1e-6, rtol=0)
    assert ColorDigits(train=False).digits[:8].tolist() == FIRST_DIGITS


EXPECTED = [0.8506242, 0.6369616, 0.5111365]
FIRST_DIGITS = [3, 5, 7, 2, 3, 0, 3, 1]
