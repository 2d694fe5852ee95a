from __future__ import annotations

import shutil

import pytest
from PIL import Image


def test_a_grid_is_drawn_for_files_and_folders(ask, finished, pictures, tmp_path):
    Image.new("L", (50, 70), 90).save(tmp_path / "grey.png")
    answer = ask(
        "sample", "--bundle", finished, "--images", pictures / "one" / "00.png", tmp_path / "grey.png",
        "-n", "3", "--out", tmp_path / "deep" / "grid.png", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    told = answer.json
    assert [image["prediction"] in ("nought", "one") for image in told["images"]] == [True, True]
    assert 0 <= told["agreement"] <= 1
    with Image.open(tmp_path / "deep" / "grid.png") as grid:
        assert grid.width > grid.height


def test_images_unlike_those_of_the_fit_are_told_by_name_and_once(ask, finished, pictures, tmp_path, monkeypatch):
    arguments = (
        "sample", "--bundle", finished, "--images", pictures / "one" / "00.png", "-n", "2", "--out", tmp_path / "a.png"
    )  # fmt: skip
    answer = ask(*arguments, "--json").json
    assert answer["outside"] == ""
    assert answer["images"][0]["is_outside"] is False
    assert 0 <= answer["images"][0]["rank"] <= 1
    assert {"times", "clipped"} <= set(answer["images"][0])
    monkeypatch.setattr("posthoc_inn.rows.world.World.limit", 0.0)
    answer = ask(*arguments)
    assert answer.code == 0
    assert "Warning: To the layer 1 of 1 images are unlike those that t was fitted to: 00.png (" in answer.out
    assert "Warning" not in answer.err


def test_the_same_seed_draws_the_same_grid(ask, finished, pictures, tmp_path):
    def grid(seed):
        out = tmp_path / f"{seed}.png"
        assert ask(
            "sample", "--bundle", finished / "bundle", "--images", pictures / "one" / "00.png", "-n", "2", "--seed",
            seed, "--out", out,
        ).code == 0  # fmt: skip
        return out.read_bytes()

    assert grid(1) == grid(1)
    assert grid(1) != grid(2)


def test_what_is_wrong_is_told_at_once(ask, finished):
    answer = ask("sample", "--bundle", finished, "--out", "grid.jpg", "--device", "gpu")
    assert answer.code == 1
    for part in ("--images is missing", "'gpu'", "a .png file, got grid.jpg"):
        assert part in answer.err


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda bundle: shutil.rmtree(bundle), "no bundle"),
        (lambda bundle: (bundle / "weights.safetensors").write_bytes(b"\x80\x04."), "weights.safetensors"),
        (lambda bundle: (bundle / "bundle.json").write_text("{"), "bundle.json"),
        (lambda bundle: (bundle / "model.safetensors").unlink(), "model.safetensors"),
    ],
    ids=["gone", "pickle", "cut short", "without the model"],
)
def test_a_damaged_bundle_is_told_in_one_line(ask, finished, pictures, tmp_path, damage, told):
    bundle = tmp_path / "bundle"
    shutil.copytree(finished / "bundle", bundle)
    damage(bundle)
    answer = ask("sample", "--bundle", bundle, "--images", pictures / "one", "--out", tmp_path / "a.png")
    assert answer.code == 1
    assert told in answer.err
    assert answer.err.count("\n") == 1


def test_a_picture_that_is_none_is_told_in_one_line(ask, finished, tmp_path):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    answer = ask("sample", "--bundle", finished, "--images", tmp_path / "a.png", "--out", tmp_path / "b.png")
    assert (answer.code, answer.err.count("\n")) == (1, 1)
    assert "is not an image" in answer.err


def test_refined_samples_tell_what_was_changed(ask, finished, pictures, tmp_path):
    given = ("sample", "--bundle", finished, "--images", pictures / "one" / "00.png", "-n", "2", "--out",
             tmp_path / "grid.png", "--refine", "3")  # fmt: skip
    told = ask(*given, "--json")
    assert told.code == 0, told.err
    found = told.json["refinement"]
    assert found["steps"] == 3
    assert found["after"]["similarity"] >= found["before"]["similarity"]
    assert found["told"] in ask(*given).out
