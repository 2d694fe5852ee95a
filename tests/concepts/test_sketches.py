"""Two sketches define a concept: which pairs there are, what is painted, what is kept."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

from posthoc_inn.concepts.sketches import SketchSource
from posthoc_inn.concepts.stylize import StyleTransfer
from posthoc_inn.errors import ConfigError, DataError, PosthocInnWarning, ShapeError
from posthoc_inn.protocols import ConceptSource

DARK, LIGHT = torch.full((1, 8, 8), 0.25), torch.full((1, 8, 8), 0.75)


class Blend:
    """Paints by going halfway to the sketch's mean colour; counts how often it was asked."""

    def __init__(self, fingerprint="blend"):
        self.calls = 0
        self.fingerprint = fingerprint

    def __call__(self, images, sketch, *, progress=None):
        self.calls += 1
        if progress:
            progress(1, 2)
            progress(2, 2)
        return (images + sketch.mean((1, 2))[:, None, None]) / 2


def images(count=9, channels=3, size=8):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1)).mul(255).round() / 255


def source(data=None, a=DARK, b=LIGHT, **options):
    data = images() if data is None else data
    return SketchSource(data, a, b, **{"name": "light", "stylize": Blend(), **options})


def test_pairs_that_differ_are_an_image_and_its_own_versions():
    made = source(images=4, sharing=False)
    index = made.index.tolist()
    assert len(set(index)) == 4
    assert index == sorted(index)
    a, b, shared = made.pairs(600, seed=0)
    expected = {(index[k], 9 + k) for k in range(4)}  # x, x^a
    expected |= {(index[k], 13 + k) for k in range(4)}  # x, x^b
    expected |= {(9 + k, 13 + k) for k in range(4)}  # x^a, x^b
    assert set(zip(a.tolist(), b.tolist(), strict=True)) == expected
    assert shared.shape == (600, 2)
    assert shared.dtype == torch.bool
    assert (shared == torch.tensor([True, False])).all()
    # The three kinds are drawn equally often.
    assert 150 < (b < 13).sum() < 250
    assert 150 < (a >= 9).sum() < 250


def test_every_second_pair_shares_the_concept_and_nothing_else():
    made = source(images=4)
    a, b, shared = made.pairs(801, seed=3)
    assert shared[::2].tolist() == [[True, False]] * 401
    assert shared[1::2].tolist() == [[False, True]] * 400
    pairs = set(zip(a[1::2].tolist(), b[1::2].tolist(), strict=True))
    expected = {(start + k, start + m) for start in (9, 13) for k in range(4) for m in range(4) if k != m}
    assert pairs == expected


def test_two_images_are_enough():
    a, b, _ = source(images(2)).pairs(100, seed=0)
    assert set(zip(a[1::2].tolist(), b[1::2].tolist(), strict=True)) == {(2, 3), (3, 2), (4, 5), (5, 4)}


def test_the_seeds_decide_and_the_global_generator_does_not():
    one, other = source(images=5, seed=1), source(images=5, seed=2)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = source(images=5, seed=1)
    assert torch.equal(one.index, again.index)
    assert not torch.equal(one.index, other.index)
    first, second, third = one.pairs(50, seed=0), again.pairs(50, seed=0), again.pairs(50, seed=1)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert not torch.equal(first[0], third[0])
    assert torch.equal(again.extra[3], one.extra[3])
    assert torch.equal(torch.get_rng_state(), state)


def test_it_is_a_concept_source_and_gives_no_pairs_if_none_are_wanted():
    made = source()
    assert isinstance(made, ConceptSource)
    assert made.names == ("light",)
    assert [tuple(t.shape) for t in made.pairs(0, seed=0)] == [(0,), (0,), (0, 2)]
    with pytest.raises(ConfigError, match="pairs takes a whole number of pairs, got -1"):
        made.pairs(-1, seed=0)


def test_painted_images_stand_where_their_indices_say_and_are_made_once():
    data, stylize = images(), Blend()
    made = source(data, images=4, stylize=stylize, keep_color=False)
    made.pairs(10, seed=0)
    assert len(made.extra) == 8
    assert stylize.calls == 0, "nothing is painted before an image is asked for"
    for k in range(4):
        original = data[made.index[k]]
        torch.testing.assert_close(made.extra[k], original / 2 + 0.125, atol=0.5 / 255, rtol=1e-5)
        torch.testing.assert_close(made.extra[4 + k], original / 2 + 0.375, atol=0.5 / 255, rtol=1e-5)
    assert torch.equal(made.extra[-1], made.extra[7])
    with pytest.raises(IndexError):
        made.extra[8]
    assert stylize.calls == 2


def test_grey_sketches_change_brightness_and_leave_the_colour():
    data = images() * 0.4 + 0.3
    made = source(data)
    assert made.keep_color
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    original = data[made.index[2]]
    luma = (original * weights).sum(0)
    torch.testing.assert_close(made.extra[2], original + (luma / 2 + 0.125) - luma, atol=1.1 / 255, rtol=0)
    chroma = made.extra[2][0] - made.extra[2][2]
    torch.testing.assert_close(chroma, original[0] - original[2], atol=2.1 / 255, rtol=0)


def test_sketches_in_colour_give_their_colours_unless_asked_not_to():
    red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(3, 8, 8)
    made = source(a=red)
    assert not made.keep_color
    assert (made.extra[0][1] <= 0.5 + 1 / 255).all()  # halfway to no green
    assert source(a=red, keep_color=True).keep_color
    assert not source(images(channels=1), a=red).keep_color


def test_the_size_can_be_chosen_and_labels_and_bytes_are_understood():
    data = TensorDataset(images().mul(255).round().byte(), torch.arange(9))
    assert torch.equal(source(data).extra[5], source(images()).extra[5])
    assert source(data, size=12).extra[0].shape == (3, 12, 12)
    ragged = [images(1, size=8)[0], images(1, size=10)[0]]
    assert source(ragged, size=9).extra[3].shape == (3, 9, 9)
    with pytest.raises(DataError, match=r"Item 1 of the data has the shape \(3, 10, 10\), others \(3, 8, 8\); pass"):
        source(ragged).prepare()


def test_augmentation_neither_depends_on_nor_moves_the_callers_generator():
    class Noisy:
        def __len__(self):
            return 5

        def __getitem__(self, index):
            return torch.rand(3, 8, 8)

    torch.manual_seed(1)
    first = source(Noisy()).prepare().extra[0]
    torch.manual_seed(2)
    assert torch.equal(first, source(Noisy()).prepare().extra[0])
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(2)))


def test_progress_counts_both_sketches():
    told = []
    source(progress=lambda done, total: told.append((done, total))).prepare()
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_cache_spares_the_painting_until_something_changes(tmp_path):
    first = source(cache=tmp_path).prepare()
    assert len(list(tmp_path.iterdir())) == 2
    idle = Blend()
    again = source(cache=tmp_path, stylize=idle).prepare()
    assert idle.calls == 0
    assert all(torch.equal(first.extra[i], again.extra[i]) for i in range(18))
    changes = [
        {"stylize": Blend("other")},
        {"data": 1 - images()},
        {"keep_color": False},
        {"size": 9},
        {"images": 4},
    ]
    for change in changes:
        made = source(**{"stylize": Blend(), "cache": tmp_path, **change})
        made.prepare()
        assert made.stylize.calls == 2, change
    # Only the sketch that changed is painted anew.
    partly = source(b=LIGHT - 0.1, cache=tmp_path).prepare()
    assert partly.stylize.calls == 1


def test_a_damaged_cache_is_painted_anew(tmp_path):
    expected = source(cache=tmp_path).prepare().extra[0]
    for file in tmp_path.iterdir():
        file.write_bytes(b"\0" * 20)
    with pytest.warns(PosthocInnWarning, match=r"stylized-.* is damaged .* painted anew"):
        assert torch.equal(source(cache=tmp_path).prepare().extra[0], expected)
    assert {load_file(f)["images"].shape for f in tmp_path.iterdir()} == {(9, 3, 8, 8)}


def test_a_cache_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written: File exists"):
        source(cache=tmp_path / "file").prepare()


def test_sketches_are_read_from_files(tmp_path):
    for name, value in (("a", 64), ("b", 191)):
        Image.new("L", (30, 20), value).save(tmp_path / f"{name}.png")
    made = source(a=tmp_path / "a.png", b=str(tmp_path / "b.png"))
    assert made.sketches[0].shape == (1, 20, 30)
    assert made.keep_color
    with pytest.raises(DataError, match=r"c\.png does not exist"):
        source(a=tmp_path / "c.png")
    (tmp_path / "d.png").write_text("no image")
    with pytest.raises(DataError, match=r"d\.png is not an image"):
        source(a=tmp_path / "d.png")


def test_the_real_style_transfer_makes_two_versions_that_differ_in_style():
    lines = ((torch.arange(24) // 3) % 2).float().expand(1, 24, 24)
    coarse = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    data = nn.functional.interpolate(coarse, (16, 16), mode="bilinear", align_corners=False)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
    stylize = StyleTransfer(network, layers=["1", "3"], side=16, steps=60, width=8, style_weight=100.0)
    made = source(data, a=lines, b=lines.transpose(1, 2), stylize=stylize)
    for k in range(4):
        standing, lying = made.extra[k], made.extra[4 + k]

        def across(image):
            """How much more the image changes from column to column than from row to row."""
            return image.diff(dim=2).square().mean() / image.diff(dim=1).square().mean()

        assert across(standing) > 1.2 * across(lying)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"b": DARK}, ConfigError, "two sketches are equal at 8 px"),
        ({"b": DARK.expand(3, 8, 8)}, ConfigError, "two sketches are equal"),
        ({"a": DARK[None]}, ShapeError, r"sketch_a must be one image .* got \(1, 1, 8, 8\)"),
        ({"b": torch.rand(2, 8, 8)}, ShapeError, "must have 1 or 3 channels"),
        ({"b": torch.rand(1, 4, 8)}, ShapeError, r"sketch_b has \(4, 8\) px; 8 is the least"),
        ({"b": DARK * 9}, DataError, r"sketch_b has values from 2.25 to 2.25"),
        ({"b": 7}, ConfigError, "sketch_b must be a tensor .* or the path of an image, got int"),
        ({"name": "residual"}, ConfigError, "name must be text other than 'residual'"),
        ({"name": " ", "images": 1, "size": 2}, ConfigError, "name must be .*; images must be .*; size must be"),
        ({"stylize": "squeezenet"}, ConfigError, "stylize must be a StyleTransfer .* got str"),
        ({"seed": -1}, ConfigError, "seed must be"),
        ({"data": images(1)}, DataError, "The data hold 1 image; sketches need 2 or more"),
        ({"data": iter([])}, ConfigError, "must be a map-style data set"),
        ({"data": images() * 2 - 1}, DataError, "no canonical image .* Undo the normalisation"),
        ({"data": images(size=6)}, ShapeError, r"The images have \(6, 6\) px, 8 is the least"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_painted(options, error, message):
    with pytest.raises(error, match=message):
        source(**options)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x: x[:, :, :4], r"stylize gave torch.float32 \(9, 1, 4, 8\); it must give .* \(9, 1, 8, 8\)"),
        (lambda x: x * float("nan"), "stylize gave values from nan"),
        (lambda x: x + 1, "must lie in"),
        (lambda x: None, "stylize gave NoneType"),
    ],
)
def test_a_stylizer_that_gives_something_else_is_named(result, message):
    with pytest.raises(DataError, match=message):
        source(stylize=lambda x, sketch, *, progress=None: result(x)).prepare()
