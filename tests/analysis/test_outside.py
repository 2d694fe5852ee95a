"""Images unlike those of the fit: found by image, told once, and seldom where there are none."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from small_parts import TINY
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from posthoc_inn import Interpreter, OutsideWarning
from posthoc_inn.analysis.outside import clipped, outside, outside_of
from posthoc_inn.config import ConditionerConfig
from posthoc_inn.datasets import ColorDigits
from posthoc_inn.errors import ShapeError
from posthoc_inn.flows.conditioner import CLIP, Standardization
from posthoc_inn.report import findings
from posthoc_inn.rows.cache import Cache
from posthoc_inn.rows.world import World


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def digits(count, start=0):
    data = ColorDigits(train=True)
    return torch.stack([data[(7 * i) % len(data)][0] for i in range(start, start + count)])


def convolutional():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(400, 10)
        ).eval()


@pytest.fixture(scope="module")
def fitted():
    return Interpreter(convolutional(), "3", preset=TINY, mean=(0,) * 3, std=(1,) * 3).fit(digits(1200))


def cache_of(z):
    cache = Cache()
    cache.append(z=z)
    return cache


def test_noise_and_another_domain_are_outside_of_a_world_of_digits():
    net = convolutional()[:4]
    side = digits(1).shape[-1]
    blocks = nn.functional.interpolate(random(40, 3, 4, 4), side)  # squares of many colours
    with torch.no_grad():
        z = net(digits(2300))
        world = World.of(cache_of(z[:1500]), cache_of(z[1500:1800]))
        assert float(world.is_outside(z[1800:]).float().mean()) < 0.005
        for other in (random(40, 3, side, side), blocks):
            assert float(world.is_outside(net(other)).float().mean()) > 0.9


@pytest.mark.parametrize("held_out", [3, 20, 200])
def test_false_alarms_are_rare_however_few_images_are_held_out(held_out):
    alarms = []
    for k in range(20):
        g = torch.Generator().manual_seed(k)
        z = torch.randn(200 + held_out + 200, 8, generator=g) * (1 + torch.rand(8, generator=g))
        world = World.of(cache_of(z[:200]), cache_of(z[200 : 200 + held_out]))
        alarms.append(float(world.is_outside(z[200 + held_out :]).float().mean()))
        assert not bool(world.is_outside(z[200 : 200 + held_out]).any())
    assert sum(alarms) / len(alarms) < 0.002


def test_the_world_is_one_of_all_classes_though_rows_come_class_by_class(monkeypatch):
    monkeypatch.setattr("posthoc_inn.rows.world.VALUES", 200 * 4)
    z = torch.cat([random(500, 4), 5 + random(500, 4, seed=1)])  # two classes, one after the other
    world = World.of(cache_of(z), cache_of(z))
    assert len(world.distances) == 200
    assert not bool(world.is_outside(z).any())


def test_ranks_are_shares_of_held_out_images_as_far():
    z = random(300, 5)
    world = World.of(cache_of(z[:200]), cache_of(z[200:]))
    rank, far = world.rank(z[200:]), world.distance(z[200:])
    slow = torch.stack([(far >= one).double().mean() for one in far])
    torch.testing.assert_close(rank.double(), slow, atol=0.011, rtol=0)
    assert float(world.rank(z[:1] + 100)) == 0
    assert float(world.times(z[200:]).median()) == pytest.approx(1, abs=0.02)


def test_too_few_rows_make_no_world():
    assert World.of(cache_of(random(19, 4)), cache_of(random(9, 4))) is None
    assert World.of(cache_of(random(40, 4)), cache_of(random(1, 4))) is None


def test_values_beyond_the_clip_are_counted_by_image():
    standard = Standardization(ConditionerConfig(z_shape=(2, 2, 2), context_dim=4))
    z = random(500, 2, 2, 2) * torch.tensor([1.0, 7.0]).reshape(2, 1, 1)
    standard.fit_standardization([z])
    z[0, 1, 0, 0], z[3, 0] = 1e4, -1e4
    by_hand = ((z - standard.z_mean) / standard.z_std).abs().gt(CLIP).flatten(1).sum(1)
    assert torch.equal(standard.clipped(z), by_hand)
    assert by_hand[[0, 1, 3]].tolist() == [1, 0, 4]
    with pytest.raises(ShapeError, match=r"built for \(B, 2, 2, 2\)"):
        standard.clipped(z[..., 0])


def test_every_fit_warns_by_image_and_so_does_its_bundle(fitted, tmp_path):
    given = digits(6, start=900)
    given[2] = random(*given[2].shape)
    fitted.sample(given[:2], n=1)
    loaded = Interpreter.load(fitted.save(tmp_path / "bundle"), model=convolutional())
    for one in (fitted, loaded):
        with pytest.warns(OutsideWarning, match=r"1 of 6 images .* image 2 \(.* held-out images"):
            one.sample(given, n=1)
        found = one.outside(given)
        assert found.images == (2,)
        assert found.each[2].rank == 0 < found.each[0].rank
        assert found.each[2].times > 1.5
        assert found.to_dict()["each"][2]["is_outside"] is True
    assert fitted.outside(given).each == loaded.outside(given).each


def test_an_older_bundle_without_a_world_loads_and_tells_nothing(fitted, tmp_path):
    older = dataclasses.replace(fitted.pipeline, world=None)
    kept = fitted.pipeline_
    try:
        fitted.pipeline_ = older
        loaded = Interpreter.load(fitted.save(tmp_path / "bundle"), model=convolutional())
    finally:
        fitted.pipeline_ = kept
    noise = random(2, *digits(1).shape[1:])
    loaded.sample(noise, n=1)
    assert loaded.outside(noise) is None
    assert outside_of(loaded.pipeline, noise) is None


def test_an_analysis_tells_images_by_their_place_in_the_data_and_only_once(fitted):
    data = digits(300, start=400)
    data[250] = random(*data[250].shape)
    for given in (data, DataLoader(TensorDataset(data), batch_size=32)):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            fitted.analyze("samples", given, images=300, samples=1)
        found = [str(w.message) for w in told if issubclass(w.category, OutsideWarning)]
        look = outside_of(fitted.pipeline, given)
        assert look.looked_at == 256
        assert len(found) == (250 in [image.number for image in look.each])
        assert all("image 250 (" in text for text in found)
    assert look.images == (250,), "the seed leaves the image out: choose another one"
    z = fitted.pipeline.features(data[240:260])
    with pytest.warns(OutsideWarning, match="image 10 "):
        fitted.analyze("explained-by-invariances", z=z)
    fitted.analyze("explained-by-invariances", data[:100])


def test_a_name_stands_for_a_number_and_many_are_cut_short(fitted):
    z = fitted.pipeline.features(digits(12)) + 100
    found = outside(fitted.pipeline, z, torch.arange(12) + 100)
    assert "12 of 12 images" in found.told
    assert "image 107 (" in found.told
    assert "108" not in found.told
    assert "and 4 more" in found.told
    assert "a.png (" in found.told_by(["a.png"] * 12)


def test_clipped_values_are_in_the_metrics_and_in_the_findings(fitted):
    figures = fitted.metrics_["clipped"]
    assert 0 <= figures["held_out"] < 0.01
    assert figures["images"] == 256
    middle = fitted.flow_.conditioner.z_mean.expand(50, *fitted.pipeline.z_shape).clone()
    middle[25:] += 1e4
    found = clipped(fitted.pipeline, cache_of(middle[:30]), cache_of(middle))
    assert (found.held_out, found.held_out_images) == (0.5, 0.5)
    assert found.train == pytest.approx(5 / 30)

    def told(share):
        return [f for f in findings({"clipped": {**figures, "held_out": share}}) if f.label == "Clipped values of z"]

    assert told(0.0) == []
    assert told(0.001)[0].status == "info"
    assert told(0.05)[0].status == "fair"
