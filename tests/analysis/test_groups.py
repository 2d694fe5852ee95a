"""Two models whose texture or shape is known to count, and groups of images in which one of the two changes."""

from __future__ import annotations

import math

import pytest
import torch
from layer_parts import linear_autoencoder, pictures, pipeline
from small_parts import TINY
from torch import nn

from posthoc_inn import Interpreter
from posthoc_inn.analysis import compare_groups
from posthoc_inn.autoencoders import GivenAutoencoder
from posthoc_inn.config import FlowConfig, ImageSpec, TrainConfig
from posthoc_inn.errors import ConfigError, ShapeError

SIDE = 8
LEFT = (torch.arange(SIDE) < 4).float().expand(SIDE, SIDE)
SHAPE = torch.stack([LEFT, 1 - LEFT])
TEXTURE = torch.stack([0.5 + 0.4 * (-1) ** (torch.arange(SIDE)[:, None] + k) * torch.ones(SIDE, SIDE) for k in (0, 1)])


def drawn(shape, texture):
    """Images whose left or right half is bright, with the stripes of one of two phases in the third channel."""
    noise = 0.05 * torch.rand(len(shape), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    bright = 0.2 + 0.6 * SHAPE[shape]
    return (torch.stack([bright, bright, TEXTURE[texture]], 1) * 0.95 + noise).clamp(0, 1)


class Sees(nn.Module):
    """Class scores by shape alone, or by texture alone."""

    def __init__(self, what):
        super().__init__()
        self.what, self.last = what, nn.Identity()

    def forward(self, x):
        score = x[:, 0, :, :4].mean((1, 2)) - x[:, 0, :, 4:].mean((1, 2))
        if self.what == "texture":
            score = x[:, 2, ::2].mean((1, 2)) - x[:, 2, 1::2].mean((1, 2))
        return self.last(torch.stack([score, -score], 1))


def judge(images):
    """Knows shapes."""
    return Sees("shape")(images)


def autoencoder():
    """Two latents: how bright the left half is, and the phase of the stripes."""

    class Encoder(nn.Module):
        def forward(self, x):
            return torch.stack([Sees(what)(x)[:, 0] for what in ("shape", "texture")], 1) * 2

    class Decoder(nn.Module):
        def forward(self, w):
            shape, texture = w[:, 0, None, None] / 4, w[:, 1, None, None] / 4
            bright = 0.5 + shape * (SHAPE[0] - SHAPE[1])
            stripes = 0.5 + texture * (TEXTURE[0] - 0.5) / 0.4
            return torch.stack([bright, bright, stripes], 1)

    return GivenAutoencoder(Encoder(), Decoder(), size=SIDE, noise=0.05)


@pytest.fixture(scope="module")
def fitted():
    g = torch.Generator().manual_seed(1)
    shape, texture = (torch.randint(2, (400,), generator=g) for _ in range(2))
    steps = TrainConfig(steps=300, batch_size=64, eval_every=100, lr=5e-3)
    config = TINY.replace(latent_dim=2, flow_training=steps, flow=FlowConfig(dim=2, context_dim=8, blocks=4, width=16))
    return {
        what: Interpreter(
            Sees(what).eval(), "last", spec=ImageSpec(size=(SIDE, SIDE), mean=(0,), std=(1,)),
            autoencoder=autoencoder(), preset=config,
        ).fit(drawn(shape, texture), evaluate=False).pipeline
        for what in ("shape", "texture")
    }  # fmt: skip


def test_each_model_keeps_what_it_goes_by(fitted):
    g = torch.Generator().manual_seed(2)
    shape, texture = (torch.randint(2, (60,), generator=g) for _ in range(2))
    groups = {"photographs": drawn(shape, shape), "restyled": drawn(shape, texture)}
    found = compare_groups(fitted, groups, judge, labels=dict.fromkeys(groups, shape), samples=6, seed=3)
    assert found.of("shape", "photographs").kept > 0.95
    assert found.of("shape", "restyled").kept > 0.95
    # Nothing of the shape is in what the second model keeps: its samples show either, whatever the image.
    for group in groups:
        part = found.of("texture", group)
        assert abs(part.kept - 0.5) < 4 * part.kept_error + 0.05
        assert abs(part.kept - part.kept_by_chance) < 0.15
    assert {part.seen for part in found.parts} == {1.0}
    assert found.of("shape", "photographs").kept_by_chance == pytest.approx(0.5, abs=0.1)


def test_without_labels_the_judges_own_word_counts(fitted):
    g = torch.Generator().manual_seed(2)
    shape, texture = (torch.randint(2, (20,), generator=g) for _ in range(2))
    groups = {"a": drawn(shape, texture)}
    with_labels = compare_groups(fitted, groups, judge, labels={"a": shape})
    without = compare_groups(fitted, groups, judge)
    assert [p.kept for p in with_labels.parts] == [p.kept for p in without.parts]
    assert math.isnan(without.parts[0].seen)
    assert without.to_dict()["parts"][0]["name"] == "shape / a"


def test_the_figure_has_a_row_an_image_and_the_caption_all_shares(fitted):
    g = torch.Generator().manual_seed(2)
    shape, texture = (torch.randint(2, (6,), generator=g) for _ in range(2))
    found = compare_groups(fitted, {"a": drawn(shape, texture), "b": drawn(shape, shape)}, judge, shown=2)
    assert found.pictures.shape == (2, 4, 8, 3, SIDE, SIDE)
    assert found.images.shape == (4, 3, SIDE, SIDE)
    assert found.figure(samples=3).get_size_inches()[0] > 1
    assert all(text in found.caption for text in ("shape, a: 100", "texture, b:", "chance"))


def test_models_may_have_autoencoders_of_different_sizes():
    small = pipeline(autoencoder=linear_autoencoder(1))
    other = pipeline("features.0")
    found = compare_groups({"one": small, "two": other}, {"all": pictures(4)}, lambda x: x.mean((2, 3)), samples=2)
    assert found.models == ("one", "two")


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"groups": {}}, ConfigError, "groups must name at least one"),
        ({"pipelines": {}}, ConfigError, "pipelines must name at least one"),
        ({"labels": {"c": torch.zeros(4)}}, ConfigError, "labels are given for c, which is no group"),
        ({"labels": {"a": torch.zeros(3)}}, ShapeError, "has 4 images and labels of shape"),
        ({"groups": {"a": pictures(1)}}, ShapeError, "has 1 images; at least 3"),
        ({"judge": lambda x: x}, ConfigError, "class scores"),
        ({"judge": lambda x: None}, ConfigError, "judge must return a tensor"),
    ],
)
def test_what_cannot_be_compared_is_refused(fitted, changes, error, told):
    given = {"pipelines": fitted, "groups": {"a": pictures(4)}, "judge": judge} | changes
    with pytest.raises(error, match=told):
        compare_groups(given.pop("pipelines"), given.pop("groups"), given.pop("judge"), **given)
