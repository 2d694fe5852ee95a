"""Defects of the papers' public reference code, each kept out by name (saving and loading, devices)."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from posthoc_inn.bundle import load_bundle, save_bundle
from posthoc_inn.bundle.members import sha256
from posthoc_inn.errors import BundleError
from posthoc_inn.features import LayerExtractor
from posthoc_inn.pipeline import Pipeline

GOLDEN = Path(__file__).parent / "bundle" / "data" / "v1"


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(GOLDEN, tmp_path / "run")


def change(run, change_tensors):
    """Change the weights, and state their new digest."""
    tensors = load((run / "weights.safetensors").read_bytes())
    change_tensors(tensors)
    data = save(tensors)
    (run / "weights.safetensors").write_bytes(data)
    content = json.loads((run / "bundle.json").read_text())
    content["members"]["weights.safetensors"] = {"size": len(data), "sha256": sha256(data)}
    (run / "bundle.json").write_text(json.dumps(content))


# ---- 6. Checkpoints are pickles loaded non-strictly.


def test_a_tensor_that_is_missing_is_an_error_and_not_a_random_initialisation(run):
    change(run, lambda tensors: tensors.pop("flow.flow.blocks.1.actnorm.shift"))
    with pytest.raises(BundleError, match=r"missing: flow\.flow\.blocks\.1\.actnorm\.shift"):
        load_bundle(run)


def test_a_tensor_too_many_is_an_error_and_not_ignored(run):
    change(run, lambda tensors: tensors.update({"flow.flow.blocks.2.actnorm.shift": torch.zeros(4)}))
    with pytest.raises(BundleError, match=r"unexpected: flow\.flow\.blocks\.2\.actnorm\.shift"):
        load_bundle(run)


def test_no_file_that_is_written_is_a_pickle_and_none_is_read(run, tmp_path):
    written = save_bundle(load_bundle(run), tmp_path / "again")
    for path in written.iterdir():
        data = path.read_bytes()
        assert not zipfile.is_zipfile(path)
        with pytest.raises((pickle.UnpicklingError, ValueError, EOFError, LookupError), match=r"."):
            pickle.loads(data)
    torch.save(load((run / "weights.safetensors").read_bytes()), run / "weights.safetensors")
    with pytest.raises(BundleError, match="is a pickle"):
        load_bundle(run)


# ---- 5. `sample()` guesses the device.


@pytest.fixture
def pipeline(run):
    bundle = load_bundle(run)
    extractor = LayerExtractor(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), "1")
    return Pipeline(extractor, bundle.adapter, bundle.autoencoder, bundle.flow, torch.device("cpu"))


def test_samples_are_made_where_the_parts_are_whatever_else_is_the_default_device(pipeline, run):
    z = torch.randn(2, 3, 5, 5)
    v = torch.randn(3, 4)
    expected = pipeline.sample_latents(pipeline.context(z), v)
    with torch.device("meta"):  # a guess would end up here
        latents = pipeline.sample_latents(pipeline.context(z), v)
        pictures = pipeline.decode(latents.flatten(0, 1))
        loaded = load_bundle(run)
    assert torch.equal(latents, expected)
    assert pictures.device.type == "cpu"
    assert {p.device.type for m in (loaded.flow, loaded.autoencoder) for p in m.parameters()} == {"cpu"}


def test_a_flow_that_was_moved_samples_where_it_was_moved_to(pipeline):
    flow = pipeline.flow
    context = flow.context(torch.randn(2, 3, 5, 5))
    flow.inverse(torch.randn(2, 4), context)
    moved = flow.to("meta")  # stands for any device that is not the CPU
    assert moved.inverse(torch.randn(2, 4, device="meta"), context.to("meta")).device.type == "meta"


def test_a_bundle_does_not_say_where_it_was_made(run):
    def keys(value):
        if isinstance(value, dict):
            return set(value) | {k for v in value.values() for k in keys(v)}
        return set()

    assert not {"device", "cuda", "path"} & keys(json.loads((run / "bundle.json").read_text()))
