"""A fit on a generator's own draws, and its inverter, killed before each of some file operations and gone on with."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
import torch
from children import in_child, killed_at
from safetensors.torch import load_file, save_file
from small_parts import TINY, network

from posthoc_inn import GivenGenerator, ImageSpec, Interpreter, Inverter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

BASIS = torch.randn(8, 3, 28, 28, generator=torch.Generator().manual_seed(0)) / 8**0.5


def generator():
    return GivenGenerator(lambda w: torch.sigmoid(torch.einsum("bd,dchw->bchw", w, BASIS)), latent_dim=8, size=28)


def fit(out):
    """Fit t on draws, then an inverter, and leave the weights of both."""
    given = generator()
    draws = given.draws(200, seed=1, keep=out / "pictures")
    model, spec = network(), ImageSpec(size=(28, 28), mean=(0,), std=(1,))
    it = Interpreter(model, "3", preset=TINY, spec=spec, autoencoder=given).fit(draws, out=out / "t", resume=True)
    inverter = Inverter(steps=8).fit(given, draws, out=out / "inverter", resume=True)
    weights = {f"t.{k}": v.contiguous() for k, v in it.flow_.state_dict().items()}
    weights |= {f"e.{k}": v.contiguous() for k, v in inverter.state_dict().items()}
    save_file(weights, str(out.with_suffix(".weights")))


def test_what_is_killed_goes_on_to_the_same_weights(tmp_path):
    assert in_child(lambda: fit(tmp_path / "whole")).code == 0
    wanted, number, kills = load_file(tmp_path / "whole.weights"), 0, 0
    while True:
        number += 6
        out = tmp_path / "killed"
        shutil.rmtree(out, ignore_errors=True)
        ended = in_child(killed_at(number, out, lambda: fit(tmp_path / "killed")))
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, ended.err
        kills += 1
        resumed = in_child(lambda: fit(tmp_path / "killed"))
        assert resumed.code == 0, (number, resumed.err)
        found = load_file(tmp_path / "killed.weights")
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), number
    assert kills > 5
