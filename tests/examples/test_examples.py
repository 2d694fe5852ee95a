"""The examples run, a few steps of everything, where their data is at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
REAL = os.environ.get("POSTHOC_INN_DATA_DIR", "")
MNIST = next((p for p in (Path(REAL, "mnist"), Path(REAL)) if REAL and any(p.rglob("train-images*"))), None)

FACES = next((p.parent for p in Path(REAL).glob("*/attributes.csv")), None) if REAL else None
FACE_NET = next(Path(REAL).glob("weights/mobilefacenet*/*.ckpt"), None) if REAL else None

PAINTER = next(Path(REAL).glob("weights/squeezenet1_0*/*.pth"), None) if REAL else None

CIFAR = next((p.parent for p in Path(REAL).glob("**/cifar-10-batches-py")), None) if REAL else None
RESNETS = {n: next(Path(REAL).glob(f"weights/cifar10_resnet/resnet{n}-*"), None) if REAL else None for n in (20, 56)}

needs_mnist = pytest.mark.skipif(MNIST is None, reason="POSTHOC_INN_DATA_DIR names no directory with MNIST")


needs_faces = pytest.mark.skipif(
    FACES is None or FACE_NET is None, reason="POSTHOC_INN_DATA_DIR has no faces with attributes, or no MobileFaceNet"
)


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *map(str, arguments), "--threads", "1"],
        capture_output=True, text=True, timeout=900, cwd=EXAMPLES, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows_of(text):
    """Rows of the tables that a script prints: what a second run must tell again."""
    found = [line for line in text.splitlines() if line.startswith("|")]
    assert found
    return found


@pytest.mark.slow
@needs_mnist
def test_the_training_sweep_runs_and_goes_on(tmp_path):
    arguments = ("--data-dir", MNIST, "--out", tmp_path, "--smoke", "--draws", "1")
    first = run("training_sweep.py", *arguments)
    assert "correlation of digit share with accuracy" in first
    for name in ("figure4.png", "table.md", "training_sweep.json", "analysis.html", "samples-10.png"):
        assert (tmp_path / name).exists(), name
    second = run("training_sweep.py", *arguments)
    assert rows_of(first) == rows_of(second)


@pytest.mark.slow
@needs_mnist
def test_disentangling_runs_and_measures_a_part_anew(tmp_path):
    arguments = ("--data-dir", MNIST, "--out", tmp_path, "--smoke")
    first = run("disentangling.py", *arguments)
    for what in ("Table 1", "Figure 2", "Figure 4", "Table 2", "Figure 9"):
        assert what in first, what
    for name in ("figure2.png", "figure4.png", "figure9-SqueezeNet.png", "disentangling.md", "disentangling.json"):
        assert (tmp_path / name).exists(), name
    assert "Table 1" in run("disentangling.py", *arguments, "--parts", "table1")


@pytest.mark.slow
@needs_faces
def test_the_faces_run_and_go_on(tmp_path):
    arguments = ("--data-dir", FACES, "--weights", FACE_NET, "--out", tmp_path, "--smoke")
    first = run("celeba_faces.py", *arguments)
    for name in ("edits.png", "edits.md", "layers.md", "invariance.png", "samples.png", "celeba_faces.json"):
        assert (tmp_path / name).exists(), name
    again = run("celeba_faces.py", *arguments)
    assert rows_of(first) == rows_of(again)


@pytest.mark.slow
@pytest.mark.skipif(FACES is None or PAINTER is None, reason="POSTHOC_INN_DATA_DIR has no faces, or no SqueezeNet 1.0")
def test_two_sketches_run_and_go_on(tmp_path):
    arguments = ("--data-dir", FACES, "--weights", PAINTER, "--out", tmp_path, "--smoke")
    first = run("two_sketches.py", *arguments)
    assert "factor tells the strokes" in first
    assert (tmp_path / "strokes.png").exists()
    assert run("two_sketches.py", *arguments) == first


@pytest.mark.parametrize("script", sorted(p.name for p in EXAMPLES.glob("*.py")))
def test_every_example_compiles_and_names_no_path_of_a_machine(script):
    text = (EXAMPLES / script).read_text()
    compile(text, script, "exec")
    assert "/work/" not in text
    assert "/tmp/" not in text


@pytest.mark.slow
@pytest.mark.skipif(CIFAR is None or None in RESNETS.values(), reason="there is no CIFAR-10, or no ResNets for it")
def test_the_inversions_run_and_go_on(tmp_path):
    arguments = ("--data-dir", CIFAR, "--weights", RESNETS[20], "--judge", RESNETS[56], "--out", tmp_path, "--smoke")
    first = run("inversion_by_depth.py", *arguments)
    for name in ("inversion.jpg", "inversion.md", "inversions/softmax.json", "inversions/layer1.png"):
        assert (tmp_path / name).exists(), name
    assert rows_of((tmp_path / "inversion.md").read_text())[0] == "| Fréchet | reconstruction | t | decoder |"
    again = run("inversion_by_depth.py", *arguments)
    assert rows_of(first)[-20:] == rows_of(again)[-20:]


def cifar_folders(place):
    """CIFAR-10's folders, with noise in them."""
    generator = torch.Generator().manual_seed(0)
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    for part, count in (("train", 40), ("test", 20)):
        for name in classes:
            (place / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = torch.randint(256, (32, 32, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(place / part / name / f"{k}.png")
    return place


@pytest.mark.slow
def test_photographs_are_explained_at_each_layer_and_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    from cifar_resnet import CifarResNet

    for depth in (20, 56):
        torch.save(CifarResNet(depth).state_dict(), tmp_path / f"{depth}.pth")
    arguments = (
        "cifar", "--data-dir", cifar_folders(tmp_path / "data"), "--weights", tmp_path / "20.pth", "--judge",
        tmp_path / "56.pth", "--out", tmp_path, "--smoke", "--layers", "layer2", "pool",
    )  # fmt: skip
    first = run("photographs.py", *arguments)
    for layer in ("layer2", "pool"):
        assert f"| {layer} |" in first
    for name in ("samples.jpg", "table.md", "figures.json"):
        assert (tmp_path / "cifar-map" / name).exists(), name
    again = run("photographs.py", *arguments)
    assert rows_of(first) == rows_of(again)
    assert "| pool |" in run("photographs.py", *arguments, "--latent", "vector")


@pytest.mark.slow
def test_texture_bias_is_asked_of_two_networks_and_gone_on_with(tmp_path, monkeypatch):
    models = pytest.importorskip("torchvision.models")
    monkeypatch.syspath_prepend(EXAMPLES)
    from cifar_resnet import CifarResNet

    for name, network in (("20", CifarResNet(20)), ("56", CifarResNet(56)), ("painter", models.squeezenet1_0())):
        torch.save(network.state_dict(), tmp_path / f"{name}.pth")
    arguments = (
        "--data-dir", cifar_folders(tmp_path / "data"), "--weights", tmp_path / "20.pth", "--judge",
        tmp_path / "56.pth", "--painter", tmp_path / "painter.pth", "--out", tmp_path / "out", "--smoke",
    )  # fmt: skip
    first = run("texture_bias.py", *arguments)
    for probe in ("as they are", "painted", "shuffled"):
        assert first.count(f"| {probe} |") == 2
    assert (tmp_path / "out" / "samples.jpg").exists()
    assert rows_of(first) == rows_of(run("texture_bias.py", *arguments))


@pytest.mark.slow
def test_the_vision_transformer_is_trained_explained_and_gone_on_with(tmp_path):
    pytest.importorskip("timm")
    arguments = ("--data-dir", cifar_folders(tmp_path / "data"), "--out", tmp_path / "out", "--smoke")
    first = run("vision_transformer.py", *arguments)
    for what in ("class token", "mean of all tokens", "patches"):
        assert f"| {what} |" in first
    assert (tmp_path / "out" / "vision-transformer.jpg").exists()
    again = run("vision_transformer.py", *arguments)
    assert rows_of(first) == rows_of(again)
    assert "steps" not in again
