"""What a sweep hands on to its fits."""

from __future__ import annotations

import json

import torch
from click.testing import CliRunner
from PIL import Image

from posthoc_inn.cli.options import chosen_preset
from posthoc_inn.cli.sweep import command as sweep
from posthoc_inn.config import preset


def test_noise_of_codes_reaches_every_fit(tmp_path):
    (tmp_path / "data").mkdir()
    pixels = torch.randint(0, 256, (60, 28, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for k, picture in enumerate(pixels):
        Image.fromarray(picture.numpy()).save(tmp_path / "data" / f"{k:02}.png")
    found = CliRunner().invoke(
        sweep,
        ["--layers", "pool", "--backbone", "small_cnn", "--weights", "none", "--data", str(tmp_path / "data"),
         "--preset", "linear", "--autoencoder-steps", "4", "--code-noise", "0.3", "--out", str(tmp_path / "out"),
         "--quiet"],
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    (metrics,) = (json.loads(p.read_text()) for p in (tmp_path / "out").glob("*/bundle/metrics.json"))
    assert metrics["code_noise"]["share"] == 0.3


def test_a_share_of_steps_by_samples_counts_for_vectors_and_maps():
    for share in (0.0, 0.7):
        config = chosen_preset("default", 0.0, share)
        assert (config.faithful, config.of_maps().faithful) == (share, share)
    assert chosen_preset("default", 0.0, None) == preset("default")
