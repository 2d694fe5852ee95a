"""benchmarks/whole_fit.py runs both ways and counts what it says; its times are not asserted."""

from __future__ import annotations

import sys

import pytest
import torch

from posthoc_inn.config import preset

pytest.importorskip("torchvision")


@pytest.mark.slow
@pytest.mark.parametrize(("option", "expected"), [([], "computed from these: 12 images"), (["--really"], "foretold")])
def test_whole_fit_prints_its_tables(load, monkeypatch, capsys, option, expected):
    monkeypatch.setattr(sys, "argv", ["whole_fit.py", "--smoke", "--threads", "1", *option])
    load("whole_fit").main()
    out = capsys.readouterr().out
    assert expected in out
    assert "resnet18:layer3" in out


def test_both_schemes_see_the_same_features_of_the_same_images(load):
    whole_fit = load("whole_fit")

    case = whole_fit.Case("resnet18:layer3", 32, 8, preset("default"))
    fit, result = case.fit(8, 1)
    ours = case.rows(result, 20)
    papers = whole_fit.PapersTask(case.flow(result), fit.parts.pipeline(), case.images, 8)
    z, mean, _, _ = papers.batch(0, torch.Generator().manual_seed(0))
    order = papers._shuffle.index(0)
    # Batches of another size round otherwise; the encoder of the fit read the images as bytes, as here.
    torch.testing.assert_close(z, ours["z"].rows(order), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mean, ours["mean"].rows(order), rtol=1e-4, atol=1e-4)
    assert torch.equal(ours["z"].rows(order), ours["z"].rows(order + 8))
