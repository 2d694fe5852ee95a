"""MSC fig. 3: maps of mean and variance against NumPy, a linear decoder's closed form, and memory in pieces."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from layer_parts import DIM, NORMALIZED, classifier, linear_autoencoder, pictures, pipeline, two_layers

from posthoc_inn import untouched
from posthoc_inn.analysis import maps
from posthoc_inn.analysis.maps import Moments, exponential_fit, invariance_maps
from posthoc_inn.errors import ConfigError, DataError, ShapeError


def test_maps_are_mean_and_variance_of_the_samples_of_each_image():
    layers, x = two_layers(), pictures(5)
    found = invariance_maps(layers, x, samples=30, seed=3)
    v = torch.randn(5, 30, DIM, generator=torch.Generator().manual_seed(3))
    for layer, parts in zip(found.layers, layers.values(), strict=True):
        averages = []
        for k in range(5):
            with torch.no_grad():
                z = parts.extractor.features((x[k : k + 1] - 0.5) / 0.5)
                context = parts.flow.context(z)
                samples = torch.cat([parts.autoencoder.decode(parts.flow.inverse(row[None], context)) for row in v[k]])
            samples = samples.double().numpy()
            variance = samples.var(axis=0, ddof=1)
            assert np.allclose(layer.mean_map[k], samples.mean(axis=0), atol=1e-6)
            assert np.allclose(layer.variance_map[k], variance.mean(axis=0), rtol=1e-3, atol=1e-9)
            averages.append(variance.mean())
        assert layer.variance == pytest.approx(np.mean(averages), rel=1e-4)
        assert layer.standard_error == pytest.approx(np.std(averages, ddof=1) / math.sqrt(5), rel=1e-3)
    decoded = parts.decode(parts.encode(x)[0]).double().numpy()
    assert found.between_images == pytest.approx(decoded.var(axis=0, ddof=1).mean(), rel=1e-6)
    assert found.layers[0].share == pytest.approx(found.layers[0].variance / found.between_images)


def test_the_variance_of_a_linear_decoder_is_that_of_the_latents_seen_through_it():
    parts = pipeline()
    x = pictures(3)
    found = invariance_maps({"a": parts}, x, samples=4000, seed=1).layers[0]
    context = parts.context(parts.features(x))
    # Other draws of v than the analysis takes.
    v = torch.randn(3, 4000, DIM, generator=torch.Generator().manual_seed(77))
    latents = parts.sample_latents(context, v).double()
    weight = parts.autoencoder.decoder[0].weight.detach().double()
    for k in range(3):
        expected = torch.einsum("ij,jk,ik->i", weight, latents[k].T.cov(), weight).reshape(3, 8, 8)
        assert float(found.variance_map[k].mean()) == pytest.approx(float(expected.mean()), rel=0.1)
        assert np.corrcoef(found.variance_map[k].flatten(), expected.mean(0).flatten())[0, 1] > 0.97


def test_a_layer_that_tells_nothing_has_samples_as_different_as_images():
    # A t that ignores z gives the same samples everywhere: same maps for every image, no error over images but v's.
    blind = invariance_maps({"a": pipeline(strength=0.0)}, pictures(40), samples=400).layers[0]
    assert float((blind.mean_map[0] - blind.mean_map[1]).abs().max()) < 0.05
    # Actnorm has set the latents' deviation: what t draws varies as the images do.
    assert blind.share == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize("values", [1, 3 * 8 * 8 * 7 * 5, 2**23])
def test_pieces_do_not_change_the_maps(values, monkeypatch):
    layers, x = {"a": pipeline()}, pictures(7)
    whole = invariance_maps(layers, x, samples=33)
    monkeypatch.setattr(maps, "VALUES", values)
    found = invariance_maps(layers, x, samples=33)
    assert torch.allclose(found.layers[0].variance_map, whole.layers[0].variance_map, rtol=1e-5)
    assert found.layers[0].variance == pytest.approx(whole.layers[0].variance, rel=1e-6)


def test_all_images_count_though_only_some_maps_are_kept(monkeypatch):
    monkeypatch.setattr(maps, "IMAGES", 4)
    parts, x = {"a": pipeline()}, pictures(11)
    found = invariance_maps(parts, x, samples=20, kept=6)
    assert found.layers[0].variance_map.shape == (6, 8, 8)
    assert found.inputs.shape == (6, 3, 8, 8)
    full = invariance_maps(parts, x, samples=20, kept=11)
    assert full.layers[0].variance_map.shape == (11, 8, 8)
    assert found.layers[0].variance == full.layers[0].variance
    assert float(full.layers[0].variance_map.mean()) == pytest.approx(full.layers[0].variance, rel=1e-5)


def test_running_moments_are_those_of_all_pictures_even_far_from_zero():
    rows = 1e6 + torch.rand(3, 50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = Moments()
    for part in rows.split([1, 20, 29], dim=1):
        moments.add(part)
    assert np.allclose(moments.mean, rows.mean(1), rtol=1e-14)
    assert np.allclose(moments.variance, rows.numpy().var(axis=1, ddof=1), rtol=1e-6)


def test_the_fit_is_the_straight_line_through_the_logarithms():
    values = [0.01, 0.05, 0.06, 0.4]
    slope, correlation = exponential_fit(values)
    assert slope == pytest.approx(np.polyfit(range(4), np.log(values), 1)[0])
    assert correlation == pytest.approx(np.corrcoef(range(4), np.log(values))[0, 1])
    assert exponential_fit([2.0, 6.0])[0] == pytest.approx(math.log(3))
    assert all(map(math.isnan, (*exponential_fit([1.0]), *exponential_fit([1.0, 0.0]), exponential_fit([1.0, 2.0])[1])))
    assert exponential_fit([3.0, 3.0, 3.0])[0] == pytest.approx(0.0)


def test_the_seed_alone_decides():
    layers, x = {"a": pipeline()}, pictures(3)
    torch.manual_seed(1)
    first = invariance_maps(layers, x, samples=8, seed=5).to_dict()  # slopes of one layer are nan, which equals nothing
    torch.manual_seed(2)
    assert invariance_maps(layers, x, samples=8, seed=5).to_dict() == first
    assert invariance_maps(layers, x, samples=8, seed=6).to_dict()["layers"] != first["layers"]


def test_normalised_tensors_give_the_maps_of_their_pictures():
    shared, x = {"model": classifier(), "autoencoder": linear_autoencoder()}, pictures(4)
    found = invariance_maps({"a": pipeline(normalization=NORMALIZED, **shared)}, NORMALIZED.apply(x), samples=16)
    assert torch.allclose(found.inputs, x, atol=1e-6)
    with pytest.raises(DataError, match="after undoing mean"):
        invariance_maps({"a": pipeline(normalization=NORMALIZED, **shared)}, NORMALIZED.apply(x) * 5, samples=16)


def test_the_model_is_left_as_it_was():
    model = classifier()
    layers = two_layers(model=model)
    with untouched(model):
        invariance_maps(layers, pictures(3), samples=4)


def test_results_are_plain_data_and_a_figure():
    found = invariance_maps(two_layers(), pictures(8), samples=16)
    plain = json.loads(json.dumps(found.to_dict()))
    assert [layer["layer"] for layer in plain["layers"]] == ["features.0", "features.2"]
    assert plain["correlation"] is None
    assert "variance_map" not in plain["layers"][0]
    assert "inputs" not in plain
    assert "features.2" in found.caption
    assert f"multiplied by {math.exp(found.slope):.2f}" in found.caption
    grid, curve, bar = found.figure(rows=3).axes
    # An input, and for both layers a mean and a variance, of three images.
    assert len(grid.images) == 3 * 5
    shown = [image.get_clim() for image in grid.images if image.get_array().ndim == 2]
    assert len(shown) == 6
    assert len(set(shown)) == 1
    assert shown[0] == pytest.approx(bar.get_ylim())
    assert "variance" in bar.get_ylabel()
    assert "in [0, 1]" in bar.get_ylabel()
    assert [t.get_text() for t in curve.get_xticklabels()] == ["features.0", "features.2"]
    heights = curve.containers[0].lines[0].get_ydata()
    assert list(heights) == [layer.variance for layer in found.layers]


def test_one_image_and_one_layer_are_enough():
    found = invariance_maps({"features.0": pipeline("features.0")}, pictures(1), samples=4)
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["between_images"] is plain["slope"] is plain["layers"][0]["standard_error"] is None
    assert "nan" not in found.caption
    assert found.figure().axes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 1}, "samples must be a whole number of at least 2.*got 1"),
        ({"samples": 2.5}, "samples must be a whole number"),
        ({"kept": 0}, "kept must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        invariance_maps({"a": pipeline()}, pictures(2), **settings)


def test_bad_images_and_layers_are_refused():
    with pytest.raises(DataError, match=r"must lie in \[0, 1\]"):
        invariance_maps({"a": pipeline()}, pictures(2) + 1)
    with pytest.raises(ShapeError, match="Add the batch"):
        invariance_maps({"a": pipeline()}, pictures(2)[0])
    other = pipeline(autoencoder=linear_autoencoder(1))
    with pytest.raises(ConfigError, match="have different autoencoders; share one"):
        invariance_maps({"a": pipeline(), "b": other}, pictures(2))
