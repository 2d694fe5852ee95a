"""Concepts on the command line: fit --concepts, edit, analyze."""

from __future__ import annotations

import json
import shutil

import pytest
from cli_helpers import QUICK, make_quick
from PIL import Image

from posthoc_inn.cli.main import main


@pytest.fixture(scope="session")
def with_concepts(pictures, tmp_path_factory):
    """A run that learned the classes of the folders; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "concepts"
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        with pytest.raises(SystemExit) as exit_:
            main(["fit", *QUICK, "--data", str(pictures), "--out", str(out), "--quiet", "--concepts", "labels",
                  "--concept-steps", "6", "--held-out", "0.3"])  # fmt: skip
    assert exit_.value.code == 0
    return out


def test_fit_learns_concepts_and_reports_them(with_concepts):
    metrics = json.loads((with_concepts / "metrics.json").read_text())
    assert metrics["concepts"]["names"] == ["class", "(random)"]
    assert sum(metrics["concepts"]["sizes"]) == 4
    page = (with_concepts / "report.html").read_text()
    for heading in ("What the layer determines of each concept", "Each concept taken from another image"):
        assert heading in page
    assert page.index("class, determined by the layer") < page.index("class, variance of its factor")


@pytest.mark.parametrize(
    ("way", "width"), [(("--source", "one/00.png"), 4), (("-n", "3"), 5), (("--to", "one/00.png", "--steps", "4"), 6)]
)
def test_edit_draws_a_row_an_image(ask, with_concepts, pictures, tmp_path, way, width):
    out = tmp_path / "deep" / "e.png"
    given = [pictures / w if str(w).endswith(".png") else w for w in way]
    answer = ask("edit", "--bundle", with_concepts, "--images", pictures / "nought" / "00.png", "--concept", "class",
                 *given, "--out", out, "--json")  # fmt: skip
    assert answer.code == 0, answer.err
    assert answer.json["concepts"] == ["residual", "class", "(random)"]
    with Image.open(out) as picture:
        assert picture.width > width * 20


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "--images is missing: the images to start from; give exactly one of"),
        (("--images", "a.png", "-n", "2"), "--concept is missing"),
        (("--images", "a.png", "-n", "2", "--to", "b.png"), "give exactly one of"),
        (("--images", "a.png", "--concept", "class", "-n", "2", "--out", "e.jpg"), "a .png file, got e.jpg"),
        (("--images", "no.png", "--concept", "class", "-n", "2"), "no.png"),
        (("--images", "ONE", "--concept", "clas", "-n", "2"), "no concept 'clas'. Did you mean 'class'?"),
    ],
)
def test_wrong_edits_are_told_in_a_line(ask, with_concepts, pictures, tmp_path, arguments, told):
    given = [pictures / "one" / "00.png" if a == "ONE" else a for a in arguments]
    answer = ask("edit", "--bundle", with_concepts, *given)
    assert answer.code == 1
    assert told in answer.err
    assert answer.err.count("\n") == 1


def test_edits_and_analyses_of_images_unlike_those_of_the_fit_are_told(
    ask, with_concepts, pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr("posthoc_inn.rows.world.World.limit", 0.0)
    edit = ("edit", "--bundle", with_concepts, "--images", pictures / "one" / "00.png", "--concept", "class", "-n", "2")
    edit = (*edit, "--out", tmp_path / "a.png")
    answer = ask(*edit)
    assert "unlike those that t was fitted to: 00.png (" in answer.out
    assert "Warning" not in answer.err
    told = ask(*edit, "--json").json
    assert told["files"][0]["is_outside"] is True
    analyze = ("analyze", "recombination", "--bundle", with_concepts, "--data", pictures, "--out", tmp_path / "a")
    answer = ask(*analyze)
    assert answer.out.count("unlike those that t was fitted to: image ") == 1
    assert "Warning" not in answer.err
    assert "unlike those that t was fitted to" in (tmp_path / "a" / "analysis.html").read_text()
    outside = json.loads((tmp_path / "a" / "analysis.json").read_text())["outside"]
    assert len(outside["images"]) == outside["looked_at"]
    assert {"number", "times", "rank", "clipped"} <= set(outside["images"][0])


def test_a_bundle_without_concepts_says_how_to_get_them(ask, finished, pictures, tmp_path):
    answer = ask("edit", "--bundle", finished, "--images", pictures / "one" / "00.png", "--concept", "a", "-n", "2")
    assert answer.code == 1
    assert "has no concepts: call fit(loader, concepts=...)" in answer.err
    answer = ask("analyze", "edits", "--bundle", finished, "--data", pictures)
    assert answer.code == 1
    assert "The analysis edits needs e" in answer.err


def test_analyze_writes_one_report_with_a_section_each(ask, with_concepts, pictures, tmp_path):
    answer = ask(
        "analyze", "concept-relevance", "edits", "recombination", "explained-by-invariances", "pair-shares",
        "--bundle", with_concepts, "--data", pictures, "--out", tmp_path / "a",
        "--option", "concept-relevance.samples=90", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    told = answer.json
    sections = {"Concept relevance", "Edits", "Recombination", "Explained by invariances", "Pair shares"}
    assert set(told) == sections | {"outside"}
    assert told["outside"]["looked_at"] > 0
    assert told["Pair shares"]["concepts"][0]["name"] == "class"
    assert told["Concept relevance"]["images"] * told["Concept relevance"]["draws"] <= 90
    page = (tmp_path / "a" / "analysis.html").read_text()
    assert page.count("<section>") == 5
    assert page.count("data:image/png") == 4
    assert "<script" not in page
    assert json.loads((tmp_path / "a" / "analysis.json").read_text()) == told


def test_all_that_the_bundle_allows_is_run_by_default_and_a_problem_is_told_in_place(
    ask, finished, pictures, tmp_path, monkeypatch
):
    from posthoc_inn.analysis import by_name as builtin_analyses
    from posthoc_inn.errors import DataError

    def broken(interpreter, data, *, seed):
        raise DataError("<b>no images</b>")

    for name in ("attack", "maps"):
        monkeypatch.setattr(builtin_analyses, name, broken)
    answer = ask("analyze", "--bundle", finished, "--data", pictures, "--out", tmp_path / "a")
    assert answer.code == 0, answer.err
    page = (tmp_path / "a" / "analysis.html").read_text()
    assert "Left out: &lt;b&gt;no images" in page
    assert "Recombination" in page
    assert "Edits" not in page  # needs e
    answer = ask("analyze", "attack", "--bundle", finished, "--data", pictures, "--out", tmp_path / "a")
    assert answer.code == 1  # asked for by name


def test_analyze_lists_what_there_is(ask, finished):
    answer = ask("analyze", "--bundle", finished, "--list", "--json")
    found = {row["name"]: row["allowed"] for row in answer.json}
    assert found["recombination"]
    assert not found["edits"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "--data is missing"),
        (("atack", "--data", "x"), "no analysis 'atack'. Did you mean 'attack'"),
        (
            ("edits", "--data", "PICTURES", "--option", "edits.image=3"),
            "it has no option 'image'; it has images",
        ),
        (("edits", "--data", "PICTURES", "--option", "images=3"), "ANALYSIS.KEY=VALUE"),
        (("--data", "no-such"), "no-such"),
    ],
)
def test_wrong_questions_are_told_in_a_line(ask, with_concepts, pictures, arguments, told):
    given = [pictures if a == "PICTURES" else a for a in arguments]
    answer = ask("analyze", "--bundle", with_concepts, *given)
    assert answer.code == 1
    assert told in answer.err
    assert answer.err.count("\n") == 1


def test_wrong_concepts_are_told_before_anything_is_written(ask, quick, pictures, tmp_path):
    out = tmp_path / "run"
    wrong = {"nonsense": "nonsense", "none.csv": "cannot be read", "sketches": "a required argument: 'sketch_a'"}
    for concepts, told in wrong.items():
        answer = ask("fit", *quick, "--data", pictures, "--out", out, "--concepts", concepts)
        assert answer.code == 1, concepts
        assert told in answer.err
    answer = ask("fit", *quick, "--data", pictures, "--out", out, "--concept-steps", "3")
    assert "--concept-steps needs --concepts" in answer.err
    assert not out.exists()


def test_a_csv_table_is_matched_by_file_name(ask, quick, pictures, tmp_path):
    table = tmp_path / "table.csv"
    names = sorted(p.name for p in (pictures / "one").iterdir())
    flat = tmp_path / "flat"
    shutil.copytree(pictures / "one", flat)
    table.write_text("file,stripe\n" + "".join(f"{n},{k % 2}\n" for k, n in enumerate(names)))
    answer = ask(
        "fit", "--backbone", "small_cnn", "--weights", "none", "--layer", "pool", "--num-classes", "2", "--precision",
        "32", "--data", flat, "--held-out", "0.4", "--out", tmp_path / "run", "--concepts", table, "--concept-steps",
        "4", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert answer.json["figures"]["concepts"]["names"] == ["stripe", "(random)"]


def test_columns_of_a_table_are_chosen_and_what_is_left_out_is_told(ask, pictures, tmp_path):
    names = sorted(p.name for p in (pictures / "one").iterdir())
    flat = tmp_path / "flat"
    shutil.copytree(pictures / "one", flat)
    table = tmp_path / "table.tsv"
    rows = [f"x{k}\t{('no', 'yes')[k % 2]}\t{k % 2}\t{n}" for k, n in enumerate(names)]
    table.write_text("\n".join(["code\tstripe\tsame\tphoto", *rows, "x\tno\t0\tgone.png"]) + "\n")
    command = ["fit", "--backbone", "small_cnn", "--weights", "none", "--layer", "pool", "--num-classes", "2"]
    command += ["--precision", "32", "--data", flat, "--held-out", "0.4", "--concepts", table, "--concept-steps", "4"]
    answer = ask(*command, "--out", tmp_path / "all")
    assert answer.code == 0, answer.err
    told = answer.out + answer.err
    assert "code (different in each row)" in " ".join(told.split())
    assert "rows of no image of these data" in " ".join(told.split())
    answer = ask(*command, "--out", tmp_path / "one", "--concept-option", "columns=stripe", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["figures"]["concepts"]["names"] == ["stripe", "(random)"]
    answer = ask(*command, "--out", tmp_path / "none", "--concept-option", "columns=strip")
    assert answer.code == 1
    assert "has no column 'strip'. Did you mean 'stripe'" in answer.err
