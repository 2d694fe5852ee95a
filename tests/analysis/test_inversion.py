"""Inversions by others: in worlds where the right picture, its mean and its spread can be written down."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from posthoc_inn.analysis import by_name, inversion, preimages
from posthoc_inn.analysis.frechet import distance, halves
from posthoc_inn.analysis.inversion import ON_Z, OPTIMIZED, RECONSTRUCTIONS, SAMPLES
from posthoc_inn.analysis.preimages import misfit, norm_prior, total_variation
from posthoc_inn.autoencoders import ConvAutoencoder, GivenAutoencoder
from posthoc_inn.config import AutoencoderConfig, ConditionerConfig, FlowConfig, ImageSpec
from posthoc_inn.errors import ConfigError, DataError, TrainingError
from posthoc_inn.features import LayerExtractor
from posthoc_inn.features.guard import untouched
from posthoc_inn.flows import ConditionalFlow
from posthoc_inn.images.adapter import InputAdapter
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.rows.cache import Cache, pixels
from posthoc_inn.training.direct import DirectDecoder, DirectTask

pytest.importorskip("torchmetrics")
# The package has functions of the same names.
MODULE = importlib.import_module("posthoc_inn.analysis.inversion")
PREIMAGES = importlib.import_module("posthoc_inn.analysis.preimages")

SIDE, D = 8, 4
SCALES = torch.tensor([1.0, 1.0, 0.7, 0.5])
REACH = 0.06


def smooth():
    """D smooth pictures (D, 3 * SIDE * SIDE) that are orthonormal: what all images here are made of."""
    line = torch.linspace(0, math.pi, SIDE)
    y, x = torch.meshgrid(line, line, indexing="ij")
    maps = [torch.cos(x), torch.cos(y), torch.cos(x) * torch.cos(y), torch.cos(2 * x)]
    colours = [(1.0, 0.5, 0.2), (0.2, 1.0, 0.5), (0.6, 0.2, 1.0), (1.0, 1.0, 1.0)]
    rows = torch.stack([(torch.tensor(c)[:, None, None] * m).flatten() for c, m in zip(colours, maps, strict=True)])
    return torch.linalg.qr(rows.T).Q.T.contiguous()


BASIS = smooth() * SIDE * math.sqrt(3)


def images_of(latents):
    """x = 0.5 + 0.06 a B with a ~ N(0, SCALES²), which does not leave [0, 1]."""
    return (0.5 + REACH * latents @ BASIS).reshape(-1, 3, SIDE, SIDE)


def latents(n, seed):
    return SCALES * torch.randn(n, D, generator=torch.Generator().manual_seed(seed)).clamp(-2.2, 2.2)


def autoencoder():
    """The exact one: E reads the D numbers, D writes them."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, D))
    decoder = nn.Sequential(nn.Linear(D, 3 * SIDE * SIDE), nn.Unflatten(1, (3, SIDE, SIDE)))
    width = 3 * SIDE * SIDE
    with torch.no_grad():
        encoder[1].weight.copy_(BASIS / REACH / width)
        encoder[1].bias.copy_(-0.5 * (BASIS / REACH / width).sum(1))
        decoder[0].weight.copy_(REACH * BASIS.T)
        decoder[0].bias.fill_(0.5)
    return GivenAutoencoder(encoder, decoder, size=SIDE, noise=1e-3).eval()


def world(seen):
    """A linear "model" that gives `seen` (K, D) times the numbers of an image, and the t that is right for it."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, len(seen), bias=False))
    with torch.no_grad():
        model[1].weight.copy_(seen @ BASIS / REACH / (3 * SIDE * SIDE))
    coder = autoencoder()
    adapter = InputAdapter(ImageSpec(size=(SIDE, SIDE)), None, SIDE, 3)
    extractor = LayerExtractor(model.eval(), "1", prediction_kind="none")
    a = latents(4000, 1)
    with torch.no_grad():
        z = extractor.features(images_of(a))
    shape = {"z_shape": (len(seen),), "context_dim": 16, "width": 64}
    flow = ConditionalFlow(FlowConfig(dim=D, context_dim=16, kind="linear"), ConditionerConfig(**shape))
    flow.conditioner.fit_standardization([z])
    flow.fit_linear(lambda: [(z, a, torch.full_like(a, 1e-3))], z)
    return Pipeline(extractor, adapter, coder, flow.eval().requires_grad_(False), torch.device("cpu"))


KEEPS_ALL = torch.eye(D) + 0.3 * torch.ones(D, D)
DROPS_TWO = torch.eye(D)[[0, 2]]
"""Sees the first and the third number; nothing of the second and the fourth."""
NETWORK = {"features": lambda x: x.flatten(1)[:, ::24], "name": "pixels"}


TRAIN = images_of(latents(800, 3))
SOME = images_of(latents(100, 2))
INVERTED, OTHERS = halves(100, 0)
FAST = {"steps": 200, "few": 4, "optimization_steps": 80, "batch_size": 64, **NETWORK}


@pytest.fixture(scope="module")
def lossless():
    return inversion(world(KEEPS_ALL), SOME, TRAIN, **FAST)


@pytest.fixture(scope="module")
def lossy():
    pipeline = world(DROPS_TWO)
    with untouched(pipeline.extractor.model), untouched(pipeline.autoencoder), untouched(pipeline.flow):
        return inversion(pipeline, SOME, TRAIN, **FAST)


def test_what_a_layer_keeps_everybody_recovers(lossless):
    for name in (RECONSTRUCTIONS, SAMPLES, ON_Z, OPTIMIZED):
        assert lossless[name].similarity > 0.99, name
    for name in (SAMPLES, ON_Z):
        shown = lossless[name].pictures[:, 0]
        assert (shown - lossless.inputs).square().mean() < 0.05 * lossless.inputs.var(0).mean(), name


def test_optimised_pixels_recover_the_image_of_an_invertible_model():
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 3 * SIDE * SIDE, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.linalg.qr(torch.randn(3 * SIDE * SIDE, 3 * SIDE * SIDE, generator=g)).Q)
    pipeline = replace(world(KEEPS_ALL), extractor=LayerExtractor(model.eval(), "1", prediction_kind="none"))
    images = SOME[:3]
    z = pipeline.features(images)
    with untouched(model):
        found = preimages(pipeline, z, steps=150, weight=3000.0)
    off = (found - images).flatten(1).square().sum(1) / (images - images.mean()).flatten(1).square().sum(1)
    assert float(off.max()) < 0.03
    assert float(misfit(pipeline.features(found), z).max()) < 0.01


def test_the_decoder_on_z_gives_the_mean_of_all_images_that_share_z(lossy):
    inverted = latents(100, 2)[INVERTED][: len(lossy.inputs)]
    mean = images_of(inverted * torch.tensor([1.0, 0.0, 1.0, 0.0]))  # the numbers are independent
    found = lossy[ON_Z].pictures[:, 0]
    between = float(mean.var(0).mean())
    assert float((found - mean).square().mean()) < 0.05 * between
    assert float((found - lossy.inputs).square().mean()) > 0.3 * between  # which is far from the image itself
    # What squared error is left: the variance of what z does not tell, of pictures in [-1, 1].
    left = 4 * REACH**2 * float(latents(800, 3)[:, [1, 3]].square().sum(1).mean())
    assert lossy.decoder.error == pytest.approx(left, rel=0.2)


def test_t_has_the_spread_that_the_layer_leaves_open_and_one_picture_a_z_has_none(lossy, lossless):
    total = float(latents(100, 2)[INVERTED].var(0).sum())
    left = float(latents(4000, 1)[:, [1, 3]].var(0).sum())
    assert lossy[SAMPLES].diversity == pytest.approx(math.sqrt(left / total), rel=0.12)
    assert lossless[SAMPLES].diversity < 0.02
    for found in (lossy, lossless):
        assert found[ON_Z].diversity == found[RECONSTRUCTIONS].diversity == 0
    assert lossy[OPTIMIZED].diversity > 0


def test_what_is_a_mean_is_no_image_by_its_distance_and_samples_are(lossy, lossless):
    assert lossy[ON_Z].distance > 2 * lossy.floor
    assert lossy[SAMPLES].distance < 1.6 * lossy.floor
    assert lossless[ON_Z].distance < 1.3 * lossless.floor
    assert math.isnan(lossy[OPTIMIZED].distance)
    assert lossy[OPTIMIZED].distance_of_few > 0


def test_distances_are_those_of_one_picture_an_image_to_the_images_that_are_not_inverted(lossy):
    features = NETWORK["features"]
    reference, own = features(SOME[OTHERS]).double(), features(SOME[INVERTED]).double()
    assert lossy.floor == pytest.approx(distance(reference, own), rel=1e-6)
    assert lossy.floor_of_few == pytest.approx(distance(reference, own[:4]), rel=1e-6)
    assert lossy[RECONSTRUCTIONS].distance == pytest.approx(lossy.floor, rel=1e-3)  # this autoencoder loses nothing
    assert (lossy.images, lossy.few, lossy.network, lossy.width) == (50, 4, "pixels", 8)


def test_images_whose_kinds_come_in_turn_are_halved_fairly():
    first, second = halves(1000, 3)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(1000))
    assert (len(first), len(halves(7, 0)[0])) == (500, 4)
    assert abs(float((first % 2).double().mean()) - 0.5) < 0.05
    assert not torch.equal(halves(1000, 4)[0], first)


def test_the_similarity_is_that_of_what_the_model_says_of_the_pictures(lossy):
    pipeline = world(DROPS_TWO)
    z = pipeline.features(lossy.inputs)
    for name in (SAMPLES, ON_Z):
        assert lossy[name].similarity > 0.98
        again = pipeline.features(lossy[name].pictures[:, 0])
        assert float(nn.functional.cosine_similarity(again, z).mean()) > 0.98, name
    assert abs(lossy.similarity_between) < 0.4


def test_agreement_is_asked_of_a_classifier_and_chance_told():
    pipeline = world(torch.cat([KEEPS_ALL, -KEEPS_ALL]))
    pipeline = replace(pipeline, extractor=LayerExtractor(pipeline.extractor.model, "1", prediction_kind="classes"))
    found = inversion(pipeline, SOME[:40], methods=["optimization"], few=3, optimization_steps=40, **NETWORK)
    assert found[RECONSTRUCTIONS].agreement == 1
    assert found[OPTIMIZED].agreement > 0.8
    assert found.agreement_between < 0.7
    assert found.decoder is None


def test_a_seed_gives_the_same_and_the_parts_do_not_matter(monkeypatch):
    given = {"methods": ["decoder"], "steps": 10, "seed": 4, **NETWORK}
    first = inversion(world(DROPS_TWO), SOME, TRAIN, **given)
    monkeypatch.setattr(MODULE, "PART", 7)
    torch.manual_seed(3)
    again = inversion(world(DROPS_TWO), SOME, TRAIN, **given)
    for name in (SAMPLES, ON_Z):
        assert again[name].distance == pytest.approx(first[name].distance, rel=1e-5)
        assert again[name].diversity == pytest.approx(first[name].diversity, rel=1e-5)
        assert torch.allclose(again[name].pictures, first[name].pictures, atol=1e-5)
    other = inversion(world(DROPS_TWO), SOME, TRAIN, **{**given, "seed": 5})
    assert other[SAMPLES].distance != pytest.approx(first[SAMPLES].distance, rel=1e-5)


def test_training_goes_on_where_it_was_stopped_and_only_with_the_same_rows(tmp_path, monkeypatch):
    pipeline = world(DROPS_TWO)
    given = {"methods": ["decoder"], "steps": 12, "out": tmp_path, **NETWORK}
    first = inversion(pipeline, SOME, TRAIN, **given)
    monkeypatch.setattr(DirectTask, "batch", lambda *_: pytest.fail("trained again"))
    again = inversion(pipeline, SOME, TRAIN, **given)
    assert again[ON_Z].distance == pytest.approx(first[ON_Z].distance, rel=1e-6)
    with pytest.raises(TrainingError, match="other data"):
        inversion(pipeline, SOME, TRAIN[:400], **given)


def test_rows_of_a_fit_serve_as_they_are_and_those_of_another_layer_are_refused():
    pipeline = world(DROPS_TWO)
    rows = Cache()
    rows.append(images=pixels(TRAIN), z=pipeline.features(TRAIN))
    given = {"methods": ["decoder"], "steps": 10, **NETWORK}
    found = inversion(pipeline, SOME, rows, **given)
    assert found.decoder.rows == 800
    assert found[ON_Z].distance == pytest.approx(inversion(pipeline, SOME, TRAIN, **given)[ON_Z].distance, rel=1e-4)
    with pytest.raises(DataError, match="another layer"):
        inversion(world(KEEPS_ALL), SOME, rows, **given)


class WithoutGradient(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    @torch.no_grad()
    def forward(self, x):
        return self.inner(x)


def test_a_model_without_gradients_is_told_before_anything_is_trained(monkeypatch):
    pipeline = world(DROPS_TWO)
    model = WithoutGradient(pipeline.extractor.model).eval()
    pipeline = replace(pipeline, extractor=LayerExtractor(model, "inner", prediction_kind="none"))
    assert inversion(pipeline, SOME[:20], TRAIN[:50], methods=["decoder"], steps=2, **NETWORK)[ON_Z].images == 10
    monkeypatch.setattr(MODULE, "trained_decoder", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ConfigError, match=r"cut off from the image.*Leave this method out"):
        inversion(pipeline, SOME, TRAIN, **NETWORK)
    with pytest.raises(ConfigError, match="bytes, which have no gradient"):
        preimages(replace(pipeline, adapter=replace(pipeline.adapter, dtype="uint8")), torch.ones(1, 2))


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"methods": ["dream"]}, ConfigError, r"methods are 'decoder' and 'optimization', .*got \['dream'\]"),
        ({"methods": []}, ConfigError, "one or both"),
        ({"few": 1, "samples": 1, "steps": 0}, ConfigError, "samples must.*2, got 1; few must.*2, got 1; steps must"),
        ({"train": None}, ConfigError, "needs training images: pass train="),
        ({"train": TRAIN[:10]}, DataError, "20 at least; there are 10"),
        ({"images": SOME[:7]}, DataError, "8 images at least"),
        ({"images": 3 * SOME}, DataError, "values from"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_trained(monkeypatch, given, error, told):
    monkeypatch.setattr("posthoc_inn.analysis.direct_decoder.train", lambda *_, **__: pytest.fail("trained"))
    given = {"images": SOME, "train": TRAIN, **NETWORK, **given}
    with pytest.raises(error, match=told):
        inversion(world(DROPS_TWO), given.pop("images"), given.pop("train"), **given)


def test_a_generator_has_no_reconstructions_to_compare_with():
    pipeline = world(DROPS_TWO)
    with pytest.raises(ConfigError, match="this fit has a generator"):
        inversion(replace(pipeline, autoencoder=SimpleNamespace(has_encoder=False)), SOME, TRAIN)


def test_only_what_a_picture_depends_on_is_trained_and_the_fits_own_stays():
    own = ConvAutoencoder(AutoencoderConfig(size=28, latent_dim=4, width=4))
    own.requires_grad_(False)
    decoder = DirectDecoder(own, ConditionerConfig(z_shape=(3,), context_dim=8, width=8))
    opened = {name for name, p in decoder.own.named_parameters() if p.requires_grad}
    assert opened == {n for n, _ in own.named_parameters() if n.startswith("decoder")}
    assert not any(p.requires_grad for p in own.parameters())
    # A pixel beyond white still has a gradient.
    with torch.no_grad():
        decoder.own.decoder_statistics.bias.copy_(torch.tensor([3.0] * 3 + [0.3] * 3))
    latent = torch.zeros(1, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(decoder._pictures(latent).sum(), latent)
    assert float(gradient.abs().sum()) > 0
    assert float(torch.autograd.grad(decoder.own.decode(latent).sum(), latent)[0].abs().sum()) == 0


def test_the_priors_are_what_their_docstrings_say():
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    a = x.double().numpy()
    lengths = np.sqrt(((a - 0.5) ** 2).sum(1)) / (80 / 255)
    assert norm_prior(x).numpy() == pytest.approx((lengths**6).mean((1, 2)), rel=1e-5)
    unit = 80 / 255 / 6.5
    squares = [
        [
            sum(
                ((a[b, c, i + 1, j] - a[b, c, i, j]) ** 2 + (a[b, c, i, j + 1] - a[b, c, i, j]) ** 2) / unit**2
                for c in range(3)
            )
            for i in range(3)
            for j in range(4)
        ]
        for b in range(2)
    ]
    assert total_variation(x).numpy() == pytest.approx(np.mean(squares, axis=1), rel=1e-5)
    assert misfit(2 * x, x).tolist() == pytest.approx([1.0, 1.0])


def test_a_picture_does_not_depend_on_those_it_is_optimised_with(monkeypatch):
    pipeline = world(DROPS_TWO)
    z = pipeline.features(SOME[:5])
    together = preimages(pipeline, z, steps=10)
    monkeypatch.setattr(PREIMAGES, "PART", 2)
    assert torch.allclose(preimages(pipeline, z, steps=10), together, atol=1e-5)
    assert not torch.allclose(preimages(pipeline, z, steps=10, seed=1), together, atol=1e-2)


def test_it_is_told_as_a_table_a_caption_a_figure_and_json(lossy):
    table = lossy.table().splitlines()
    assert len(table) == 7
    assert table[0].startswith("|  | Fréchet, 50 images | of 4 of them | agreement")
    assert table[-1].startswith("| optimised pixels | - |")
    for text in ("What to conclude", "What not to conclude", "Pixels were optimised for 4 images", "of pixels"):
        assert text in lossy.caption
    told = json.loads(json.dumps(lossy.to_dict(), allow_nan=False))
    assert [m["name"] for m in told["methods"]] == [RECONSTRUCTIONS, SAMPLES, ON_Z, OPTIMIZED]
    assert told["methods"][3]["distance"] is None
    assert told["decoder"]["steps"] == 200
    assert "pictures" not in told["methods"][0]
    texts = [text.get_text() for text in lossy.figure().axes[0].texts]
    rows = ["image", RECONSTRUCTIONS, *(f"{SAMPLES} {k}" for k in (1, 2, 3)), ON_Z, OPTIMIZED]
    assert [t for t in texts if t in rows] == rows
    with pytest.raises(KeyError, match="no method 'dream'"):
        lossy["dream"]


def test_by_name_it_takes_a_registered_network_and_wants_images_to_train_on(monkeypatch):
    known = SimpleNamespace(pipeline=world(DROPS_TWO))
    given = {"images": 40, "steps": 5, "few": 2, "optimization_steps": 2, "seed": 0}
    found = by_name.inversion(known, SOME, train=TRAIN[:60], network="small_cnn", network_layer="pool", **given)
    assert found.network == "small_cnn pool with random weights"
    assert (found.images, found.decoder.rows) == (20, 60)
    with pytest.raises(ConfigError, match="takes images, as given to fit, not 'photos'; on the command line"):
        by_name.inversion(known, SOME, train="photos", **given)
    monkeypatch.setattr(MODULE, "inception_weights", lambda: None)
    alone = by_name.inversion(known, SOME, methods="optimization", **given)
    assert alone.network == "Sequential 1"
