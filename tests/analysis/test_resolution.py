"""What the resize alone costs, told apart from what the autoencoder and t lose."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from layer_parts import SIDE, linear_autoencoder, pictures, pipeline
from torch import nn

from posthoc_inn.analysis import resolution
from posthoc_inn.analysis.measure import autoencoder_quality
from posthoc_inn.config import ImageSpec
from posthoc_inn.images.adapter import InputAdapter
from posthoc_inn.report import findings
from posthoc_inn.rows.cache import Cache, pixels


def rows(parts, given):
    """Rows as a fit caches them: pictures at the autoencoder's size, z and prediction of the image itself."""
    cache = Cache()
    z, output = parts.extractor.features_and_prediction(parts.adapter.to_model(given))
    mean, std = parts.encode(given)
    images = pixels(parts.adapter.to_images(given))
    cache.append(images=images, z=z.detach(), prediction=output.argmax(1), mean=mean, std=std)
    return cache


def network():
    """A network for images of any size, which looks at edges."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 5)).eval()
        with torch.no_grad():
            model[6].bias.sub_(model((pictures(200, seed=8) - 0.5) / 0.5).mean(0))
        return model


def resizing(side):
    """Fitted parts whose model takes images of `side` pixels, while the autoencoder has 8."""
    parts = pipeline("4", model=network(), autoencoder=linear_autoencoder(reach=0.001))
    spec = ImageSpec(size=(side, side), mean=(0.5,), std=(0.5,), interpolation="bilinear")
    return dataclasses.replace(parts, adapter=InputAdapter(spec, None, SIDE, 3))


def test_at_one_size_nothing_is_lost_but_by_an_autoencoder_that_loses_all():
    parts = resizing(SIDE)
    held_out = rows(parts, pictures(60))
    found = resolution(parts, held_out, torch.arange(60))
    assert found.similarity > 0.9999
    assert found.agreement > 0.95  # 8 bits
    assert (found.image_size, found.model_size, found.images) == (SIDE, (SIDE, SIDE), 60)
    assert autoencoder_quality(parts, held_out).similarity < found.similarity - 0.005


def test_what_a_smaller_autoencoder_cannot_hold_is_the_resizes_doing():
    parts = resizing(2 * SIDE)
    fine = pictures(60, side=2 * SIDE)  # independent pixels: 8 pixels a side hold a quarter of them
    held_out = rows(parts, fine)
    found = resolution(parts, held_out, torch.arange(60))
    back = F.interpolate(held_out["images"].tensor().float() / 255, 2 * SIDE, mode="bilinear")
    z, output = parts.extractor.features_and_prediction((back.clamp(0, 1) - 0.5) / 0.5)
    same = (output.argmax(1) == held_out["prediction"].tensor()).double()
    cosine = F.cosine_similarity(z.flatten(1), held_out["z"].tensor().flatten(1)).mean()
    assert found.similarity == pytest.approx(float(cosine), abs=1e-4)
    assert found.agreement == pytest.approx(float(same.mean()), abs=0.02)
    assert found.similarity < 0.99
    smooth = F.interpolate(pictures(60, side=3), 2 * SIDE, mode="bilinear")
    assert resolution(parts, rows(parts, smooth), torch.arange(60)).similarity > found.similarity + 0.003


def test_rows_without_pictures_have_none():
    cache = Cache()
    cache.append(z=torch.zeros(3, 2))
    assert resolution(resizing(SIDE), cache, torch.arange(3)) is None


METRICS = {
    "autoencoder": {"error": 0.005, "agreement": 0.96, "similarity": 0.98},
    "faithfulness": {"agreement": 0.92, "similarity": 0.93, "similarity_between": 0.55},
}


def meaning(label, **parts):
    metrics = copy.deepcopy(METRICS) | parts
    return next(f.meaning for f in findings(metrics) if f.label == label)


def test_findings_tell_three_steps_and_bound_nothing():
    resized = {"image_size": 64, "agreement": 0.971, "similarity": 0.985}
    nearest = {"agreement": 0.958, "similarity": 0.98, "neighbours": 8, "rows": 900}
    told = meaning("Same prediction as the image", resolution=resized, retrieval=nearest)
    assert "64 pixels and back has 97.1 %, its reconstruction 96.0 %, samples 92.0 %." in told
    assert "nearest training images have 95.8 %" in told
    assert "cannot be expected" not in told
    told = meaning("Same features at the layer", resolution=resized)
    assert "has 0.985, its reconstruction 0.980, samples 0.930." in told
    assert "pixels" not in meaning("Same features at the layer", resolution={**resized, "similarity": 1.0})
    assert "pixels" not in meaning("Same prediction as the image")
