"""Registered image metrics, asked about pictures: the figures, and every way a metric can be wrong."""

import math

import numpy as np
import pytest
import torch

from posthoc_inn import hookimpl
from posthoc_inn.analysis import image_metrics
from posthoc_inn.analysis.image_metrics import CHUNK, check_image_metrics, measure_image_metrics
from posthoc_inn.errors import DataError, PluginError, ShapeError, UnknownNameError
from posthoc_inn.plugins import PluginManager


def distance(a, b):
    return (a - b).abs().flatten(1).mean(1)


METRICS = {
    "distance": distance,
    "closeness": lambda a, b: 1 - distance(a, b),
    "too-short": lambda a, b: distance(a, b)[1:],
    "one-number": lambda a, b: distance(a, b).mean(),
    "no-tensor": lambda a, b: [0.0] * len(a),
    "infinite": lambda a, b: 1 / distance(a, a),
    "complex": lambda a, b: torch.complex(distance(a, b), distance(a, b)),
    "fails": lambda a, b: a @ b[:, :, :3],
    "refuses": None,
}


class Metrics:
    """A plugin with one metric of each kind."""

    @hookimpl
    def register_image_metrics(self, register):
        for name, metric in METRICS.items():
            options = {"closeness": {"higher_is_better": True}, "distance": {"min_size": 8}}.get(name, {})
            register(name, (lambda m=metric: m) if metric is not None else self.refuse, **options)

    def refuse(self):
        raise DataError("no weights here")


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    manager = PluginManager(entry_points=[])
    manager.load()
    manager.register(Metrics(), distribution="mine")
    monkeypatch.setattr(image_metrics, "get_plugin_manager", lambda: manager)


def batches(n=6, size=16):
    return torch.rand(n, 3, size, size), torch.rand(n, 3, size, size)


def test_the_mean_and_its_standard_error_are_those_over_the_images():
    a, b = batches(9)
    found = measure_image_metrics(["distance", "closeness"], a, b)
    each = np.abs(a.numpy().astype(np.float64) - b.numpy()).reshape(9, -1).mean(1)
    assert list(found) == ["distance", "closeness"]
    assert found["distance"]["value"] == pytest.approx(each.mean(), rel=1e-6)
    assert found["distance"]["standard_error"] == pytest.approx(each.std(ddof=1) / 3, rel=1e-4)
    assert found["closeness"]["value"] == pytest.approx(1 - each.mean(), rel=1e-6)
    assert (found["distance"]["higher_is_better"], found["closeness"]["higher_is_better"]) == (False, True)


def test_images_in_several_chunks_give_what_they_give_at_once(monkeypatch):
    a, b = batches(CHUNK + 3, size=8)
    apart = measure_image_metrics(["distance"], a, b)
    monkeypatch.setattr(image_metrics, "CHUNK", 1000)
    assert measure_image_metrics(["distance"], a, b) == apart


def test_a_single_image_has_no_standard_error():
    assert measure_image_metrics(["distance"], *batches(1))["distance"]["standard_error"] is None


def test_no_name_gives_nothing():
    assert measure_image_metrics([], *batches()) == {}


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(UnknownNameError, match=r"no image metric 'distanse'\. Did you mean 'distance'\?"):
        measure_image_metrics(["distanse"], *batches())
    with pytest.raises(UnknownNameError, match=r"no image metric 'distanse'"):
        check_image_metrics(["ssim", "distanse"])


def test_pictures_that_are_too_small_for_a_metric_are_refused():
    with pytest.raises(DataError, match=r"'distance' takes pictures of at least 8 x 8 pixels, got 7 x 7\. Leave it"):
        measure_image_metrics(["distance"], *batches(size=7))
    with pytest.raises(DataError, match=r"'ssim' takes pictures of at least 11 x 11 pixels, got 64 x 10"):
        check_image_metrics(["ssim"], (64, 10))
    check_image_metrics(["ssim", "distance"], (11, 11))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("too-short", r"must return one number a pair, a tensor \(6,\), got \(5,\)"),
        ("one-number", r"a tensor \(6,\), got \(\)"),
        ("no-tensor", "got list"),
        ("infinite", "must return finite real numbers, got 6 of 6 that are not finite"),
        ("complex", "must return finite real numbers, got complex numbers"),
        ("fails", r"fails over pictures \(6, 3, 16, 16\): RuntimeError"),
    ],
)
def test_a_metric_that_is_wrong_is_named_with_its_distribution(name, told):
    with pytest.raises(PluginError, match=f"^The image metric '{name}' of mine .*{told}"):
        measure_image_metrics([name], *batches())


def test_what_a_metric_refuses_itself_is_passed_on():
    with pytest.raises(DataError, match="no weights here"):
        measure_image_metrics(["refuses"], *batches())


@pytest.mark.parametrize(
    ("images", "pictures"),
    [
        ((6, 3, 16, 16), (5, 3, 16, 16)),
        ((6, 3, 16, 16), (6, 1, 16, 16)),
        ((3, 16, 16), (3, 16, 16)),
        ((0, 3, 16, 16),) * 2,
    ],
)
def test_batches_of_other_shapes_are_refused(images, pictures):
    with pytest.raises(ShapeError, match=r"compare two batches \(B, C, H, W\) of one shape, got"):
        measure_image_metrics(["distance"], torch.zeros(images), torch.zeros(pictures))


def slow_ssim(a, b):
    """Wang et al. (2004), eq. 13 with eq. 14-16, one window after another."""
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(line, line) / np.outer(line, line).sum()
    values = []
    for x, y in zip(a, b, strict=True):
        here = []
        for channel in range(x.shape[0]):
            for i in range(x.shape[1] - 10):
                for j in range(x.shape[2] - 10):
                    p, q = x[channel, i : i + 11, j : j + 11], y[channel, i : i + 11, j : j + 11]
                    mp, mq = (window * p).sum(), (window * q).sum()
                    vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                    cov = (window * (p - mp) * (q - mq)).sum()
                    top = (2 * mp * mq + 0.01**2) * (2 * cov + 0.03**2)
                    here.append(top / ((mp**2 + mq**2 + 0.01**2) * (vp + vq + 0.03**2)))
        values.append(np.mean(here))
    return np.array(values)


def test_ssim_is_that_of_the_paper():
    a = torch.rand(3, 2, 14, 17, dtype=torch.float64)
    b = (a + 0.2 * torch.randn(a.shape, dtype=torch.float64)).clamp(0, 1)
    found = measure_image_metrics(["ssim"], a, b)["ssim"]
    expected = slow_ssim(a.numpy(), b.numpy())
    assert found["value"] == pytest.approx(expected.mean(), abs=1e-9)
    assert found["standard_error"] == pytest.approx(expected.std(ddof=1) / math.sqrt(3), abs=1e-9)
    assert found["higher_is_better"] is True
    assert 0.1 < found["value"] < 0.95


def test_ssim_is_that_of_torchmetrics_where_its_window_lies_inside_the_image():
    functional = pytest.importorskip("torchmetrics.functional.image")
    a = torch.rand(4, 3, 28, 28)
    b = (a + 0.1 * torch.randn(a.shape)).clamp(0, 1)
    _, theirs = functional.structural_similarity_index_measure(
        a, b, data_range=1.0, reduction="none", return_full_image=True
    )
    # It pads the image by reflection and counts the borders; the paper does not.
    expected = float(theirs[..., 5:-5, 5:-5].mean())
    assert measure_image_metrics(["ssim"], a, b)["ssim"]["value"] == pytest.approx(expected, abs=1e-5)


def test_ssim_is_one_for_equal_images_and_lower_the_more_noise_there_is():
    a = torch.rand(4, 3, 28, 28)
    noisy = [(a + s * torch.randn(a.shape)).clamp(0, 1) for s in (0.0, 0.1, 0.5)]
    values = [measure_image_metrics(["ssim"], a, b)["ssim"]["value"] for b in noisy]
    assert values[0] == pytest.approx(1, abs=1e-6)
    assert values[0] > values[1] + 0.02 > values[2] + 0.04
