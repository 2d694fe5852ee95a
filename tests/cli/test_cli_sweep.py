import pytest
import torch

SMALL = ("--preset", "default", "--precision", "32", "--threads", "1", "--quiet")


def test_layers_are_compared_with_the_model_and_the_autoencoder_of_a_run(ask, finished, pictures, tmp_path):
    out = tmp_path / "sweep"
    arguments = ("sweep", "--bundle", finished, "--layers", "stage3,pool", "--data", pictures, *SMALL, "--out", out)
    answer = ask(*arguments, "--json")
    assert answer.code == 0, answer.err
    points = answer.json["points"]
    assert [p["name"] for p in points] == ["stage3", "pool"]
    assert all(0 <= p["explained_by_invariances"] <= 1 and 0 <= p["accuracy"] <= 1 for p in points)
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "What each layer knows" in (out / "analysis.html").read_text(encoding="utf-8")
    again = ask(*arguments)
    assert again.code == 0
    assert "| pool |" in again.out


def test_checkpoints_are_compared_in_the_order_of_their_steps(ask, pictures, tmp_path):
    from posthoc_inn.builtin.small_cnn import small_cnn

    files = []
    for step in (20, 5):
        torch.manual_seed(step)
        file = tmp_path / f"{step}.pth"
        torch.save(small_cnn(weights=None, num_classes=2).state_dict(), file)
        files += ["--checkpoint", f"{step}={file}"]
    answer = ask(
        *("sweep", "--backbone", "small_cnn", "--num-classes", "2", "--layer", "pool", *files, "--data", pictures),
        *("--concepts", "labels", "--concept-steps", "4", *SMALL, "--out", tmp_path / "sweep", "--json"),
    )
    assert answer.code == 0, answer.err
    assert [(p["name"], sorted(p["concepts"])) for p in answer.json["points"]] == [
        (step, ["(random)", "class", "residual"]) for step in ("5", "20")
    ]


def test_networks_are_compared_each_with_images_as_it_wants_them(ask, pictures, tmp_path):
    answer = ask(
        *(
            "sweep",
            "--network",
            "small_cnn=pool=none",
            "--network",
            "squeezenet1_1=features.2=none",
            "--data",
            pictures,
        ),
        *("--data", pictures, "--input-size", "32", *SMALL, "--out", tmp_path / "sweep", "--json"),
    )
    assert answer.code == 0, answer.err
    assert [p["layer"] for p in answer.json["points"]] == ["pool", "features.2"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--data", "x"), "give exactly one of --layers"),
        (("--layers", "a", "--network", "b=c=none", "--data", "x"), "got --layers and --networks"),
        (("--layers", "a,b", "--data", "x"), "give the model: one of --bundle, --backbone and --model"),
        (("--checkpoint", "1=x.pth", "--backbone", "small_cnn", "--data", "x"), "--checkpoint needs --layer"),
        (("--network", "small_cnn", "--data", "color-digits"), "NAME=LAYER=WEIGHTS"),
        (("--checkpoint", "x", "--layer", "pool", "--backbone", "small_cnn", "--data", "color-digits"), "STEP=FILE"),
        (
            ("--layers", "pol", "--backbone", "small_cnn", "--weights", "none", "--data", "color-digits"),
            "no layer",
        ),
        (("--layers", "pool", "--backbone", "small_cnn", "--data", "color-digits"), "needs --weights"),
        (("--layers", "pool", "--bundle", "x", "--concepts", "y", "--data", "z"), "brings its autoencoder"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_before_anything_is_written(ask, tmp_path, arguments, match):
    answer = ask("sweep", *arguments, "--out", tmp_path / "sweep")
    assert (answer.code, answer.err.count("\n")) == (1, 1), answer.err
    assert match in answer.err
    assert not (tmp_path / "sweep").exists()
