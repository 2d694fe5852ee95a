"""analyze --inversion: what trains is asked for, and wants images to train on."""

from __future__ import annotations

import pytest

FEW = [f"inversion.{k}={v}" for k, v in (("images", 16), ("steps", 3), ("few", 2), ("optimization_steps", 2))]
OPTIONS = [part for option in FEW for part in ("--option", option)]


@pytest.fixture(autouse=True)
def _needs_torchmetrics():
    pytest.importorskip("torchmetrics")


def test_it_trains_on_the_images_that_are_named(ask, finished, pictures, tmp_path):
    answer = ask(
        "analyze", "--inversion", "--bundle", finished, "--data", "color-digits", "--train-data", pictures,
        *OPTIONS, "--option", f"inversion.out={tmp_path / 'kept'}", "--out", tmp_path / "a", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    told = answer.json["Inversion"]
    assert set(answer.json) == {"Inversion", "outside"}
    assert [m["name"] for m in told["methods"]] == [
        "reconstructions", "samples of t", "decoder on z", "optimised pixels"
    ]  # fmt: skip
    assert (told["images"], told["few"], told["decoder"]["rows"]) == (8, 2, 36)  # of forty, a tenth is held out
    assert "data:image/png" in (tmp_path / "a" / "analysis.html").read_text()
    assert (tmp_path / "kept" / "decoder-on-z.safetensors").exists()


@pytest.mark.parametrize("given", [("--inversion",), ("inversion",), ("inversion", "--inversion")])
def test_without_images_to_train_on_it_says_what_to_pass(ask, finished, given):
    answer = ask("analyze", *given, "--bundle", finished, "--data", "color-digits")
    assert answer.code == 1
    assert "The analysis inversion needs training images: pass --train-data" in answer.err
    assert answer.err.count("\n") == 1


def test_it_is_run_by_default_only_where_there_are_images_to_train_on(ask, finished, pictures, tmp_path, monkeypatch):
    from posthoc_inn.analysis import by_name
    from posthoc_inn.builtin import hooks
    from posthoc_inn.errors import DataError

    seen = []

    def noted(interpreter, data, *, seed, train=None, **rest):
        seen.append(train)
        raise DataError("no")

    for one in hooks.ANALYSES:
        monkeypatch.setattr(by_name, one.function, noted)
    given = ("analyze", "--bundle", finished, "--data", "color-digits", "--out", tmp_path / "a")
    assert ask(*given).code == 0
    assert seen
    assert set(seen) == {None}
    assert ask(*given, "--train-data", pictures).code == 0
    assert [len(train) for train in seen if train is not None] == [36]


def test_the_list_says_what_it_needs(ask, finished):
    row = next(line for line in ask("analyze", "--bundle", finished, "--list").out.splitlines() if "MSC tab. 1" in line)
    assert "(needs --train-data)" in row
    assert "(needs --concepts)" not in row
