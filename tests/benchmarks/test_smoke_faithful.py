"""The benchmark of t trained by its samples runs, and its world is what it says."""

import pytest
import torch


def test_it_runs(load, capsys):
    load("faithful").main(["--smoke", "--weights", "0", "0.25"])
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_given_z_what_is_not_seen_is_standard_normal(load):
    module = load("faithful")
    rows = module.world(4000, 0.1, 0)
    unseen = rows["mean"].tensor() @ module.MIXED[:, module.SEEN :]
    z = rows["z"].tensor()
    joint = torch.corrcoef(torch.cat([z, z.square(), unseen], dim=1).T)
    assert float(joint[: 2 * module.SEEN, 2 * module.SEEN :].abs().max()) < 0.08
    total = unseen.var(0) + rows["std"].tensor()[0, 0] ** 2
    assert total.mean().item() == pytest.approx(1.0, abs=0.03)
