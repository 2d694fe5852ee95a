from __future__ import annotations

import json

import pytest
import torch
from bundle_helpers import sample
from make_golden import DATA

from posthoc_inn.bundle import FORMAT_VERSION, load_bundle

VERSIONS = sorted(p.name for p in DATA.iterdir())


def test_there_is_a_bundle_of_every_format_version():
    assert [f"v{n}" for n in range(1, FORMAT_VERSION + 1)] == VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_a_bundle_of_every_version_is_read_and_gives_the_same_samples(version):
    expected = json.loads((DATA / version / "expected.json").read_text())
    bundle = load_bundle(DATA / version)
    latents, pictures = sample(bundle)
    assert torch.allclose(latents, torch.tensor(expected["latents"]), atol=1e-4)
    assert torch.allclose(pictures.mean((1, 2, 3)), torch.tensor(expected["pictures"]), atol=1e-4)
    number = int(version[1:])
    # What older versions did not know is as it was: the shape of the prediction tells.
    assert bundle.extractor["prediction_kind"] == ("multilabel" if number >= 4 else "auto")
    assert (bundle.concepts is not None) == ("factors" in expected)
    if bundle.concepts is not None:
        assert bundle.concepts.names == ("digit", "color")
        # Formats before the fifth did not keep correlations and deviations: factors are taken for N(0, 1).
        assert bundle.concepts.is_measured == (number >= 5)
        assert bundle.concepts.deviation.tolist() == pytest.approx([1, 1.1, 0.6, 1.2] if number >= 5 else [1] * 4)
        assert bool(bundle.concepts.rho.isnan().all()) == (number < 5)
        assert torch.allclose(bundle.concepts.joined(latents), torch.tensor(expected["factors"]), atol=1e-4)
