"""Samples, and their Fréchet distance: torchmetrics' number against NumPy, and floors that are fair."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from concept_parts import digit_net, make_concepts, make_pipeline, random_rows
from torch import nn

from posthoc_inn.analysis import frechet
from posthoc_inn.analysis.frechet import FeatureNetwork, Frechet, Halving, frechet_distance, inception_weights
from posthoc_inn.analysis.generative import generate, generate_batches, generative_quality
from posthoc_inn.errors import ConfigError, DataError, PluginError, ShapeError
from posthoc_inn.features import LayerExtractor
from posthoc_inn.seeds import derived

pytest.importorskip("torchmetrics")
linalg = pytest.importorskip("scipy.linalg")

D = 6


def images(n, seed=0, channels=1, size=8):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def slow_frechet(a, b):
    """The formula itself, with scipy's matrix root."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(cov_a @ cov_b).real
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root)


# ---- samples


def test_samples_are_the_decoded_inverse_of_standard_normal_draws():
    e, pipeline = make_concepts(), make_pipeline(digit_net(), "1")
    draws = torch.randn(5, D, generator=torch.Generator().manual_seed(3))
    expected = pipeline.autoencoder.decode(e.inverse(draws))
    assert torch.equal(generate(pipeline, e, 5, seed=3), expected)
    assert torch.equal(generate(pipeline.autoencoder, e, 5, seed=3), expected)


def test_samples_come_in_batches_that_add_up_and_depend_on_the_seed_alone(monkeypatch):
    monkeypatch.setattr("posthoc_inn.analysis.generative.CHUNK", 4)
    e, pipeline = make_concepts(), make_pipeline(digit_net(), "1")
    torch.manual_seed(1)
    sizes = [len(batch) for batch in generate_batches(pipeline, e, 10, seed=3)]
    assert sizes == [4, 4, 2]
    first = generate(pipeline, e, 10, seed=3)
    torch.manual_seed(2)
    assert torch.equal(generate(pipeline, e, 10, seed=3), first)
    assert not torch.equal(generate(pipeline, e, 10, seed=4), first)


def test_samples_that_cannot_be_made_are_refused_at_once():
    pipeline = make_pipeline(digit_net(), "1")
    with pytest.raises(ConfigError, match="works on a layer's z; n must be at least 1"):
        generate_batches(pipeline, make_concepts(space="z"), 0)
    with pytest.raises(ConfigError, match="pass dim"):
        generate_batches(pipeline, None, 3)


# ---- the distance


def test_the_distance_is_the_formula():
    real, made = images(300), images(200, seed=1) ** 2
    result = frechet_distance(real, made, features=lambda x: x.flatten(1)[:, :10], name="pixels")
    a, b = real.flatten(1)[:, :10], made.flatten(1)[:, :10]
    assert result.value == pytest.approx(slow_frechet(a, b), rel=1e-6)
    first, second = Halving(0)(300)
    assert result.floor == pytest.approx(slow_frechet(a[first], a[second]), rel=1e-6)
    assert (result.network, result.width, result.real, result.generated) == ("pixels", 10, 300, 200)


def test_gaussians_give_their_closed_form():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(60_000, 3, generator=g, dtype=torch.float64)
    b = torch.tensor([2.0, 1.0, 0.5]) * torch.randn(60_000, 3, generator=g, dtype=torch.float64) + 1
    metric = Frechet()
    metric.add(a, real=True)
    metric.add(b, real=False)
    assert metric.compute() == pytest.approx(3 + 1 + 0 + 0.25, rel=0.02)


def test_batches_of_any_size_give_the_same_numbers_and_halves():
    real, made = images(101), images(50, seed=1)
    whole = frechet_distance(real, made, features=lambda x: x.flatten(1)[:, :5], name="pixels")
    parts = frechet_distance(
        iter(real.split(7)), (p for p in made.split(3)), features=lambda x: x.flatten(1)[:, :5], name="pixels"
    )
    assert parts.value == pytest.approx(whole.value, rel=1e-9)
    assert parts.floor == pytest.approx(whole.floor, rel=1e-9)


def test_halves_are_fair_where_classes_come_in_turn():
    # Dark and bright images in turn: every other one would make one half dark, and the other bright.
    real = images(400) / 10 + torch.tensor([0.0, 0.8]).repeat(200)[:, None, None, None]
    pixels = {"features": lambda x: x.flatten(1)[:, :5].double(), "name": "pixels"}
    assert frechet_distance(real, real, **pixels).floor < 0.1
    first, second = Halving(3)(400)
    assert len(first) == len(second) == 200
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(400))


def test_equal_sets_are_at_no_distance_and_a_shift_adds_its_square():
    real = images(400)
    pixels = {"features": lambda x: x.flatten(1)[:, :5].double(), "name": "pixels"}
    assert frechet_distance(real, real, **pixels).value == pytest.approx(0, abs=1e-6)
    assert frechet_distance(real / 2, real / 2 + 0.25, **pixels).value == pytest.approx(5 / 16, rel=1e-4)


def test_any_network_serves_and_gives_its_name():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)).train()
    x = images(6)
    maps = net(x).detach()
    assert torch.allclose(FeatureNetwork(net)(x), maps.mean((2, 3)).double(), atol=1e-6)
    assert FeatureNetwork(net).name == "Sequential"
    assert net.training
    extractor = LayerExtractor(net, "1")
    assert torch.allclose(FeatureNetwork(extractor)(x), net[1](net[0](x)).mean((2, 3)).double(), atol=1e-6)
    assert FeatureNetwork(extractor).name == "Sequential 1"
    pipeline = make_pipeline(digit_net(), "2")
    assert torch.allclose(FeatureNetwork(pipeline)(x), pipeline.extractor.features(x).double())
    tokens = torch.randn(6, 3, 2)
    assert torch.allclose(FeatureNetwork(lambda _: tokens, name="t")(x), tokens.double().mean(1))


def test_networks_and_images_that_do_not_serve_are_refused():
    with pytest.raises(ConfigError, match="need a name"):
        FeatureNetwork(lambda x: x)
    with pytest.raises(ShapeError, match="Features must be"):
        FeatureNetwork(lambda x: x.mean(), name="m")(images(3))
    with pytest.raises(ShapeError, match="Images must be float"):
        FeatureNetwork(lambda x: x, name="m")(images(3)[0])
    with pytest.raises(DataError, match="from -1 to 1"):
        FeatureNetwork(lambda x: x, name="m")(torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8))
    with pytest.raises(DataError, match="not finite"):
        FeatureNetwork(lambda x: x.flatten(1) / 0, name="m")(images(3))
    with pytest.raises(DataError, match="got 5 real and 1 generated"):
        frechet_distance(images(5), images(1), features=nn.Flatten())
    metric = Frechet()
    metric.add(torch.zeros(2, 3), real=True)
    with pytest.raises(ShapeError, match="4 values follow features of 3"):
        metric.add(torch.zeros(2, 4), real=True)


def test_inception_is_never_downloaded_and_a_wrong_file_never_opened(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("downloads"))
    assert inception_weights() is None
    with pytest.raises(ConfigError, match="nothing is downloaded unasked"):
        frechet_distance(images(5), images(5))
    path = tmp_path / "checkpoints" / frechet.INCEPTION_FILE
    path.parent.mkdir()
    path.write_bytes(b"not a network")
    assert inception_weights() == path
    with pytest.raises(DataError, match="is not the file its name says"):
        frechet_distance(images(5), images(5))


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(PluginError, match=r"pip install posthoc-inn\[metrics\]"):
        frechet_distance(images(5), images(5), features=nn.Flatten())


def test_the_caption_says_what_the_number_may_be_compared_with():
    few = frechet_distance(images(20), images(30, seed=1), features=nn.Flatten(), name="raw pixels")
    assert "raw pixels" in few.caption
    assert "not the Inception distance" in few.caption
    assert "With 20 images for 64 features the estimate is biased upwards" in few.caption
    assert "biased" not in frechet_distance(images(130), images(128), features=nn.Flatten()).caption


# ---- the comparison


@pytest.fixture
def no_inception(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))


def fitted(n=400):
    """Images that the autoencoder keeps almost whole, and an e that knows the law of their latents."""
    latents = random_rows(n, D, seed=3)
    pipeline = make_pipeline(digit_net(), "1")
    return pipeline, make_concepts(curved=False, rows=latents), pipeline.decode(latents)


def test_every_kind_is_compared_with_one_half_and_the_other_half_is_the_floor(no_inception):
    pipeline, e, real = fitted(101)
    result = generative_quality(pipeline, e, [real[:30], real[30:37], real[37:]], seed=2)
    look = lambda x: pipeline.extractor.features(x).detach().numpy()  # noqa: E731
    reference, others = (real[half] for half in Halving(2)(101))
    count = len(others)
    parts = [
        len([k for k in Halving(2)(101)[1].tolist() if low <= k < high]) for low, high in ((0, 30), (30, 37), (37, 101))
    ]
    assert result["real images"].distance == pytest.approx(slow_frechet(look(reference), look(others)), rel=1e-5)
    drawn = generate(pipeline, e, count, seed=derived(2, "trial", 0))
    assert result["samples of e"].distance == pytest.approx(slow_frechet(look(reference), look(drawn)), rel=1e-5)
    prior = torch.randn(count, D, generator=torch.Generator().manual_seed(derived(2, "trial", 0)))
    decoded = look(pipeline.decode(prior))
    assert result["samples of N(0, 1)"].distance == pytest.approx(slow_frechet(look(reference), decoded), rel=1e-5)
    noise, again = torch.Generator().manual_seed(2), []
    for part in others.split(parts):
        mean, std = pipeline.encode(part)
        again.append(pipeline.decode(mean + std * torch.randn(mean.shape, generator=noise)))
    rebuilt = slow_frechet(look(reference), look(torch.cat(again)))
    assert result["reconstructions"].distance == pytest.approx(rebuilt, rel=1e-5)
    assert (result.images, result.trials, result.network) == (count, 1, "Sequential 1")


def test_an_e_that_knows_the_latents_beats_the_prior_and_nothing_beats_the_floor_by_much(no_inception):
    pipeline, e, real = fitted(4000)
    result = generative_quality(pipeline, e, real, trials=3)
    floor = result["real images"].distance
    assert result["reconstructions"].distance < result["samples of N(0, 1)"].distance / 5
    assert result["samples of e"].distance < result["samples of N(0, 1)"].distance / 2
    assert floor < result["samples of e"].distance
    assert result["samples of e"].deviation > 0
    assert np.isnan(result["real images"].deviation)


def test_the_figure_has_a_row_a_kind_with_its_distance(no_inception):
    pipeline, e, real = fitted(60)
    result = generative_quality(pipeline, e, real, features=nn.Flatten(), name="pixels")
    texts = [t.get_text() for t in result.figure().axes[0].texts]
    assert texts == [f"{c.name}\nFréchet {c.distance:.4g}" for c in result.comparisons]
    assert len(result.figure().axes[0].images) == 4 * 12
    assert all("pictures" not in c for c in result.to_dict()["comparisons"])
    assert "pixels" in result.caption


def test_comparisons_that_cannot_be_made_are_refused(no_inception):
    pipeline, e, real = fitted(8)
    with pytest.raises(DataError, match="4 images at least"):
        generative_quality(pipeline, e, real[:2])
    with pytest.raises(ConfigError, match="an e over z_bar and at least one trial; got z_bar and 0"):
        generative_quality(pipeline, e, real, trials=0)
