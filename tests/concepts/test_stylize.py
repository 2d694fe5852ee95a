"""The style transfer: its losses against a slow rewrite, and what it does to images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from posthoc_inn.builtin.small_cnn import small_cnn
from posthoc_inn.concepts.style_features import StyleFeatures, gram
from posthoc_inn.concepts.stylize import PaintingNet, StyleTransfer, Stylizer
from posthoc_inn.config import ImageSpec
from posthoc_inn.errors import (
    ConfigError,
    DataError,
    LayerNotFoundError,
    PosthocInnWarning,
    ShapeError,
    UnknownNameError,
)
from posthoc_inn.features.guard import untouched
from posthoc_inn.testing.models import tiny_model

SPEC = ImageSpec(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def photographs(count=6, size=24, seed=0):
    """Smooth random colour images, all different."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear", align_corners=False)


def stripes(size=24):
    return ((torch.arange(size) // 3) % 2).float().expand(3, size, size)


@pytest.fixture(scope="module")
def network():
    """Two random convolutions: enough to tell stripes from smooth images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(inplace=True))


def transfer(network, **options):
    return StyleTransfer(network, **{"spec": SPEC, "side": 24, "steps": 40, "width": 8, **options})


def test_the_losses_are_those_of_gatys_relative_to_the_target(network):
    stylize = transfer(network, layers=["1", "3"], content_layer="3")
    images, painted, sketch = photographs(3), photographs(3, seed=1), stripes()
    content, style = stylize.losses(painted, images, sketch)

    def maps(x, layer):
        x = (x - torch.tensor(SPEC.mean).view(3, 1, 1)) / torch.tensor(SPEC.std).view(3, 1, 1)
        with torch.no_grad():
            for module in network[: int(layer) + 1]:
                x = module(x)
        return x.double().numpy()

    for row in range(3):
        f, target = maps(painted, "3")[row], maps(images, "3")[row]
        spread = sum(((c - c.mean()) ** 2).sum() for c in target)
        assert content[row].item() == pytest.approx(((f - target) ** 2).sum() / spread, rel=1e-4)
        errors = []
        for layer in ("1", "3"):
            f, s = maps(painted, layer)[row], maps(sketch[None], layer)[0]
            positions, channels = f[0].size, len(f)
            g, wanted = (
                np.array(
                    [
                        [sum(np.ravel(m[i]) * np.ravel(m[j])) / positions for j in range(channels)]
                        for i in range(channels)
                    ]
                )
                for m in (f, s)
            )
            errors.append(((g - wanted) ** 2).sum() / (wanted**2).sum())
        assert style[row].item() == pytest.approx(np.mean(errors), rel=1e-4)


def test_images_come_nearer_to_their_sketch_and_stay_what_they_are(network):
    images, sketch = photographs(), stripes()
    stylize = transfer(network, layers=["1", "3"])
    painted = stylize(images, sketch)
    before, after = stylize.losses(images, images, sketch)[1], stylize.losses(painted, images, sketch)[1]
    assert (after < 0.7 * before).all()
    # Of all painted images, the one made of an image is nearest to it in content.
    distance = torch.stack([stylize.losses(painted, other.expand_as(painted), sketch)[0] for other in images])
    assert distance.argmin(1).tolist() == list(range(len(images)))
    assert painted.shape == images.shape
    assert painted.min() >= 0
    assert painted.max() <= 1


def test_each_sketch_leaves_its_own_mark(network):
    images, one, other = photographs(), stripes(), stripes().transpose(1, 2)
    stylize = transfer(network, layers=["1", "3"], style_weight=100.0, steps=80)
    lying, standing = stylize(images, one.transpose(1, 2)), stylize(images, one)
    own, foreign = stylize.losses(standing, images, one)[1], stylize.losses(standing, images, other)[1]
    assert (own < foreign).all()
    assert (stylize.losses(lying, images, other)[1] < stylize.losses(lying, images, one)[1]).all()


def test_a_larger_weight_means_more_style_and_less_content(network):
    images, sketch = photographs(), stripes()
    results = []
    for weight in (0.2, 20.0):
        stylize = transfer(network, style_weight=weight)
        results.append(stylize.losses(stylize(images, sketch), images, sketch))
    (weak_content, weak_style), (strong_content, strong_style) = results
    assert strong_style.mean() < weak_style.mean()
    assert strong_content.mean() > weak_content.mean()


def test_the_seed_decides_and_the_global_generator_does_not(network):
    images, sketch = photographs(), stripes()
    torch.manual_seed(1)
    first = transfer(network, steps=3, seed=5)(images, sketch)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, transfer(network, steps=3, seed=5)(images, sketch))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was moved"
    assert not torch.equal(first, transfer(network, steps=3, seed=6)(images, sketch))


def test_the_model_is_untouched_and_networks_that_draw_at_random_move_nobodys_generator():
    model, _ = tiny_model("hoarder")
    model.train()
    with untouched(model):  # generators included
        stylize = StyleTransfer(model, layers=["conv"], steps=2, side=8)
        stylize(photographs(size=8), stripes(8))
    assert all(p.grad is None and not p.requires_grad for p in stylize._features.net.parameters())
    assert not any(m._forward_hooks for m in stylize._features.net.modules())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(network, mode):
    expected = transfer(network, steps=3)(photographs(), stripes())
    with mode():
        painted = transfer(network, steps=3)(photographs(), stripes())
    assert not painted.requires_grad
    assert torch.equal(painted.clone(), expected)


def test_grey_images_stay_grey_and_any_aspect_ratio_is_kept(network):
    images = photographs()[:, :1, :, :20]
    painted = transfer(network, steps=2)(images, stripes())
    assert painted.shape == (6, 1, 24, 20)


def test_it_is_a_stylizer_and_tells_its_progress(network):
    stylize = transfer(network, steps=3, batch_size=4)
    assert isinstance(stylize, Stylizer)
    told = []
    stylize(photographs(6), stripes(), progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 5) for i in range(1, 6)]  # three steps, two batches of at most 4


def test_the_fingerprint_tells_weights_and_options_apart(network):
    assert transfer(network).fingerprint == transfer(network).fingerprint
    torch.manual_seed(9)
    other = nn.Sequential(*(nn.Conv2d(3, 8, 3, padding=1), *list(network)[1:]))
    prints = {transfer(network).fingerprint, transfer(network, seed=1).fingerprint, transfer(other).fingerprint}
    assert len(prints | {transfer(network, style_weight=3.0).fingerprint}) == 4


def test_a_registered_backbone_brings_its_spec_and_its_layers():
    with pytest.warns(PosthocInnWarning, match="small_cnn with random weights: .* no shapes"):
        stylize = StyleTransfer.from_backbone("small_cnn", side=32)
    assert stylize._features.spec == ImageSpec(mean=(0.5,) * 3, std=(0.5,) * 3)
    # stage3 (4 px) and what follows are too small at this side.
    assert stylize.layers(photographs(size=16)) == (("stem", "stage1", "stage2"), "stage1")
    with pytest.raises(UnknownNameError, match=r"no backbone 'smal_cnn'. Did you mean 'small_cnn'"):
        StyleTransfer.from_backbone("smal_cnn")
    with pytest.raises(DataError, match=r"nothing\.safetensors is missing"):
        StyleTransfer.from_backbone("small_cnn", weights="nothing.safetensors")


def test_layers_are_spread_over_those_with_large_maps_in_the_order_of_call():
    features = StyleFeatures(small_cnn(), ImageSpec(), side=64)
    assert features.layers(photographs(1), ["head", "pool", "stage3", "stage2", "stem"]) == ["stem", "stage2", "stage3"]
    found = features.layers(photographs(1))
    assert (len(found), found[0]) == (4, "stem.0")
    assert all(min(m.shape[2:]) >= 8 for m in features(photographs(1), found).values())


def test_images_are_enlarged_threefold_within_limits(network):
    features = StyleFeatures(network, ImageSpec())
    sides = {size: features.inputs(torch.rand(1, 3, size, size + 1)).shape[2] for size in (8, 28, 64, 200)}
    assert sides == {8: 64, 28: 84, 64: 128, 200: 200}


def test_maps_are_copies_of_the_first_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU(inplace=True)
            self.last = nn.Identity()

        def forward(self, x):
            x = self.relu(x - 0.5)
            return self.last(self.relu(x.neg_().add_(0.3)))

    images = torch.rand(1, 3, 8, 8)
    found = StyleFeatures(Twice(), ImageSpec(), side=8)(images, ["relu", "last"])
    torch.testing.assert_close(found["relu"], (images - 0.5).relu())
    torch.testing.assert_close(found["last"], (0.3 - (images - 0.5).relu()).relu())


def test_the_pass_ends_at_the_last_layer_asked_for(network):
    late = nn.Sequential(*network, nn.Linear(7, 7))  # would raise: it fits no map
    assert StyleFeatures(late, ImageSpec(), side=24)(photographs(2), ["3"])["3"].shape == (2, 12, 12, 12)


def test_the_gram_matrix_is_per_position():
    features = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(gram(features), torch.einsum("bchw,bdhw->bcd", features, features) / 20)


def test_the_painting_network_begins_as_the_identity_and_every_parameter_learns():
    net, images = PaintingNet(3, 4, levels=2), photographs(2, size=25).clamp(0.05, 0.95)
    torch.testing.assert_close(net(images), images)
    nn.init.normal_(net.head.weight, std=0.1)
    net(images).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert net(torch.zeros(1, 3, 8, 8)).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style_weight": 0.0}, "style_weight must be positive, got 0.0"),
        ({"style_weight": float("nan")}, "style_weight must be positive"),
        ({"steps": 0, "width": 1.5}, r"steps must be .* got 0; width must be .* got 1.5"),
        ({"layers": "1"}, "layers must be a list of names"),
        ({"layers": []}, "at least one layer"),
        ({"side": 4}, "side must be 8 or more"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_bad_options_are_refused_together(network, options, message):
    with pytest.raises(ConfigError, match=message):
        transfer(network, **options)


def test_layers_that_cannot_serve_are_refused(network):
    images, sketch = photographs(2), stripes()
    with pytest.raises(LayerNotFoundError, match="has no layer '7'"):
        transfer(network, layers=["7"])(images, sketch)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(24 * 24 * 3, 4))
    with pytest.raises(ConfigError, match="No layer of Sequential gives a map of 8 px"):
        transfer(flat)(images, sketch)
    with pytest.raises(ConfigError, match=r"Layer '0' gives \(1, 1728\), no map"):
        transfer(flat, layers=["0"])(images, sketch)
    unreached, _ = tiny_model("unreached")
    with pytest.raises(ConfigError, match="never calls aux"):
        StyleTransfer(unreached, layers=["conv", "aux"], side=8)(photographs(2, 8), sketch)


@pytest.mark.parametrize(
    ("images", "sketch", "message"),
    [
        (torch.rand(2, 3, 24, 24), torch.rand(1, 3, 24, 24), r"sketch must be one image .* got \(1, 3, 24, 24\)"),
        (torch.rand(3, 24, 24), torch.rand(3, 24, 24), "Add the batch"),
        (torch.rand(2, 3, 24, 24), torch.rand(2, 24, 24), "must have 1 or 3 channels"),
        (torch.rand(2, 3, 7, 24), torch.rand(3, 24, 24), "8 px and more"),
        (torch.rand(0, 3, 24, 24), torch.rand(3, 24, 24), "at least one image"),
        (torch.zeros(2, 3, 24, 24, dtype=torch.uint8), torch.rand(3, 24, 24), "floating-point"),
    ],
)
def test_images_and_sketches_of_other_shapes_are_refused(network, images, sketch, message):
    with pytest.raises(ShapeError, match=message):
        transfer(network)(images, sketch)
