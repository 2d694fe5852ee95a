"""Image files on the command line: read as the model looks at them, drawn as it saw them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from small_parts import TINY
from where_things_are import Drawing, Where, blobs, places_of

from posthoc_inn import ImageSpec, Interpreter
from posthoc_inn.bundle import load_bundle
from posthoc_inn.cli.bundles import read_images
from posthoc_inn.drawing import to_png
from posthoc_inn.images import apply_spec, load_image

FOUR = TINY.replace(latent_dim=4, flow=TINY.flow.replace(dim=4), linear_fallback=True)
OWN = ("--model", "where_things_are:where", "--autoencoder", "where_things_are:drawing")
WIDE = ImageSpec(size=(48, 96))
CROPPED = ImageSpec(size=(48, 48), crop=0.75)
FILES = {"wide": (70, 160, 90, 30), "tall": (200, 90, 40, 110), "square": (120, 120, 70, 64)}
"""Height and width of a file, and column and row of its blob."""


def save(image, file):
    Image.fromarray(image.permute(1, 2, 0).mul(255).round().byte().numpy()).save(file)


def saved(directory, spec, shape):
    generator = torch.Generator().manual_seed(1)
    at = 0.3 + 0.4 * torch.rand(32, 2, generator=generator)
    radius = torch.full((32, 2), 0.07 * min(shape))
    images = blobs(torch.cat([at * torch.tensor([shape[1], shape[0]]), radius], 1), shape)
    fitted = Interpreter(
        Where(), "places", spec=spec, autoencoder=Drawing(), preset=FOUR, precision="32", prediction_kind="none",
        **({} if spec else {"mean": (0.0,), "std": (1.0,)}),
    ).fit(images, evaluate=False)  # fmt: skip
    fitted.save(directory)
    return directory


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name, (height, width, column, row) in FILES.items():
        place = torch.tensor([[column, row, 0.08 * min(height, width), 0.08 * min(height, width)]])
        save(blobs(place.float(), (height, width))[0], folder / f"{name}.png")
    return folder


WAYS = {"a wide spec": (WIDE, (60, 120)), "a central crop": (CROPPED, (64, 80)), "wide tensors": (None, (48, 96))}


@pytest.fixture(scope="module", params=list(WAYS))
def bundle(request, tmp_path_factory):
    spec, shape = WAYS[request.param]
    return saved(tmp_path_factory.mktemp("bundle") / "bundle", spec, shape), spec or WIDE


def test_files_reach_the_model_as_its_spec_would_show_them(bundle, photos):
    stored = load_bundle(bundle[0], autoencoder=Drawing())
    paths = [photos / f"{name}.png" for name in FILES]
    given = read_images(stored, paths)
    seen = places_of(stored.adapter.to_model(given))
    alone = torch.cat([places_of(apply_spec(load_image(file)[None], bundle[1])) for file in paths])
    assert (seen - alone).abs().max() < 0.5  # in pixels of the model's input
    shown = stored.adapter.to_images(given)
    scale = torch.tensor(bundle[1].size)[[1, 0, 1, 0]] / torch.tensor(shown.shape[-2:])[[1, 0, 1, 0]]
    assert (places_of(shown) * scale - alone).abs().max() < 0.7


def test_the_picture_of_sample_shows_what_the_model_saw(bundle, photos, ask, tmp_path, monkeypatch):
    monkeypatch.setattr(to_png, "__defaults__", (150,))  # other tests draw small
    where, spec = bundle
    file = photos / "wide.png"
    answer = ask("sample", "--bundle", where, *OWN, "--images", file, "-n", "2", "--out", tmp_path / "a.png", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["similarity"] > 0.97
    grid = np.asarray(Image.open(tmp_path / "a.png").convert("L")).astype(int)
    # The pictures' dark ground on the figure's white, and a bright blob in each.
    cells, _ = ndimage.label(ndimage.binary_fill_holes((grid > 45) & (grid < 60)))
    boxes = [box for box in ndimage.find_objects(cells) if (box[0].stop - box[0].start) > 60]
    assert len(boxes) == 4  # the image, its reconstruction, and two samples
    expected = places_of(apply_spec(load_image(file)[None], spec))[0]
    for k, box in enumerate(boxes[:2]):
        cell = grid[box]
        height, width = cell.shape
        assert abs(width / height - spec.size[1] / spec.size[0]) < 0.06
        rows, columns = np.nonzero(cell > 130)
        at = np.array([columns.mean() * spec.size[1] / width, rows.mean() * spec.size[0] / height])
        assert np.abs(at - expected[:2].numpy()).max() < 1.0, k
        assert abs(np.ptp(rows) - np.ptp(columns)) <= 3


def test_a_model_gets_files_at_the_height_and_width_that_are_asked_for(ask, tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    for k in range(24):
        height, width, column, row = FILES[list(FILES)[k % 3]]
        place = torch.tensor([[column - k, row + k / 2, 6.0, 6.0]])
        save(blobs(place, (height, width))[0], files / f"{k:02}.png")
    fit = (
        "fit", *OWN, "--layer", "places", "--data", files, "--steps", "8", "--precision", "32", "--prediction-kind",
        "none", "--out", tmp_path / "run",
    )  # fmt: skip
    answer = ask(*fit, "--input-size", "24x60")
    assert answer.code == 0, answer.err
    assert load_bundle(tmp_path / "run" / "bundle", autoencoder=Drawing()).adapter.spec.size == (24, 60)
    assert "--input-size 24,60" in answer.out + answer.err + (tmp_path / "run" / "report.html").read_text()
    assert ask("fit", "--out", tmp_path / "run", "--resume").code == 0
    wrong = ask(*fit, "--input-size", "24x0")
    assert wrong.code != 0
    assert "is no size in pixels" in wrong.err


def test_a_folder_of_wide_files_is_fitted_whole(ask, tmp_path):
    generator = torch.Generator().manual_seed(2)
    (tmp_path / "files").mkdir()
    for k in range(40):
        column, row = (torch.rand(2, generator=generator) * torch.tensor([60, 20]) + torch.tensor([15, 12])).tolist()
        save(blobs(torch.tensor([[column, row, 3.0, 3.0]]), (44, 90))[0], tmp_path / "files" / f"{k:02}.png")
    answer = ask(
        "fit", *OWN, "--layer", "places", "--data", tmp_path / "files", "--steps", "8", "--precision", "32",
        "--prediction-kind", "none", "--out", tmp_path / "run",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert "read at 48 x 98 px" in answer.out + answer.err
    adapter = load_bundle(tmp_path / "run" / "bundle", autoencoder=Drawing()).adapter
    assert (adapter.spec.size, adapter.picture_shape) == ((48, 98), (48, 98))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["autoencoder"]["similarity"] > 0.99
    assert (tmp_path / "run" / "report.html").exists()
