"""Whole fits: what the model saw is what the pictures show, and z is of the images at the model's own resolution."""

from __future__ import annotations

import io
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from small_parts import TINY
from torch import nn
from where_things_are import Drawing, Where, blobs, places_of

from posthoc_inn import ImageSpec, Interpreter
from posthoc_inn.analysis import compare_groups
from posthoc_inn.bundle import load_bundle
from posthoc_inn.bundle.record import AdapterRecord
from posthoc_inn.drawing import to_png
from posthoc_inn.images.adapter import InputAdapter
from posthoc_inn.plugins import get_plugin_manager

FOUR = TINY.replace(latent_dim=4, flow=TINY.flow.replace(dim=4), linear_fallback=True)
"""Its t is the linear one, which knows where things are."""


def scene(shape, n=48, margin=0.15, seed=0):
    """Images with round blobs all over, away from the borders by a share `margin`."""
    generator = torch.Generator().manual_seed(seed)
    height, width = shape
    at = margin + (1 - 2 * margin) * torch.rand(n, 2, generator=generator)
    radius = min(shape) * (0.05 + 0.03 * torch.rand(n, 1, generator=generator))
    return blobs(torch.cat([at * torch.tensor([width, height]), radius, radius], 1), shape)


WAYS = {
    "the user's wide tensors": ((48, 96), None, 0.15),
    "the user's tall tensors": ((96, 40), None, 0.15),
    "a spec of wide images": ((60, 140), ImageSpec(size=(48, 96)), 0.2),
    "a spec with a central crop": ((60, 96), ImageSpec(size=(48, 48), crop=0.75), 0.36),
    "a spec that keeps the size": ((40, 64), ImageSpec(), 0.15),
}


@pytest.fixture(scope="module", params=list(WAYS))
def way(request):
    shape, spec, margin = WAYS[request.param]
    images = scene(shape, margin=margin)
    interpreter = Interpreter(
        Where(), "places", spec=spec, autoencoder=Drawing(), preset=FOUR, precision="32", prediction_kind="none",
        **({} if spec else {"mean": (0.0,), "std": (1.0,)}),
    ).fit(images)  # fmt: skip
    return interpreter, images


def test_a_reconstruction_is_where_the_model_saw_the_image_and_as_round(way):
    interpreter, images = way
    pipeline = interpreter.pipeline
    seen = pipeline.features(images)
    pictures = pipeline.reconstructions(images)
    own = places_of(pictures)
    scale = torch.tensor(interpreter.adapter_.spec.size)[[1, 0, 1, 0]] / torch.tensor(pictures.shape[-2:])[[1, 0, 1, 0]]
    assert (own * scale - seen).abs().max() < 0.7  # in pixels of the model's input
    assert (own[:, 2] / own[:, 3] - 1).abs().max() < 0.1
    assert (places_of(pipeline.adapter.to_images(images)) * scale - seen).abs().max() < 0.7
    # All of the view is used, beyond a central square too.
    far = (seen[:, :2] / torch.tensor(interpreter.adapter_.spec.size)[[1, 0]] - 0.5).abs().amax(0)
    assert far.min() > 0.17
    assert far.max() > 0.25


def test_the_model_sees_in_decoded_pictures_what_it_saw_in_images(way):
    interpreter, images = way
    pipeline = interpreter.pipeline
    seen = pipeline.features(images)
    assert (pipeline.ask_model(pipeline.reconstructions(images))[0] - seen).abs().max() < 0.7
    drawn = interpreter.sample(images, n=3)
    assert drawn.shape[1:] == (3, 3, *interpreter.adapter_.picture_shape)
    again = pipeline.ask_model(drawn.flatten(0, 1))[0].unflatten(0, (-1, 3))
    # In pixels; a zoom by two, or a crop, is off by ten.
    assert (again - seen[:, None]).abs()[..., :2].mean() < 1.5
    assert interpreter.metrics_["autoencoder"]["similarity"] > 0.99
    assert interpreter.metrics_["resolution"]["similarity"] > 0.99
    assert interpreter.metrics_["faithfulness"]["similarity"] > 0.98


def test_the_plan_tells_the_size_of_pictures_that_are_no_squares(way):
    interpreter, images = way
    height, width = interpreter.adapter_.picture_shape
    assert (f"48 px (pictures of {height} x {width})" in str(interpreter.plan(images))) is (height != width)


def test_figures_show_round_things_round(way):
    interpreter, images = way
    png = to_png(interpreter.analyze("samples", images[:2], samples=2).figure())
    shown = np.asarray(Image.open(io.BytesIO(png)).convert("L")).astype(int)
    found = bright_spots(shown)
    assert len(found) >= 4  # two images and their reconstructions, and samples that do not touch a border
    for rows, columns in found:
        assert abs(rows - columns) <= 0.15 * max(rows, columns) + 2


def bright_spots(shown):
    """Heights and widths of bright regions that lie in the pictures' dark ground, not in the figure's white."""
    labels, count = ndimage.label((shown > 120) & (shown < 250))
    found = []
    for k in range(1, count + 1):
        spot = labels == k
        if spot.sum() > 40 and shown[ndimage.binary_dilation(spot) & ~spot].max() <= 120:
            found.append(tuple(int(spot.any(axis).sum()) for axis in (1, 0)))
    return found


def test_a_bundle_keeps_the_frame_and_one_of_an_earlier_version_its_own(way, tmp_path):
    interpreter, images = way
    interpreter.save(tmp_path / "bundle")
    loaded = Interpreter.load(tmp_path / "bundle", model=Where(), autoencoder=Drawing())
    assert loaded.pipeline.adapter == interpreter.adapter_
    assert torch.equal(loaded.sample(images[:2], n=2), interpreter.sample(images[:2], n=2))
    assert load_bundle(tmp_path / "bundle", autoencoder=Drawing()).adapter.frame == "view"


def test_an_older_bundle_does_not_tell_its_frame_and_keeps_the_square():
    told = AdapterRecord.of(InputAdapter(ImageSpec(size=(32, 32), crop=0.5), None, 28, 3)).to_dict()
    assert told.pop("frame") == "view"
    assert AdapterRecord.from_dict(told).adapter().frame == "square"


# ---- z at the model's own resolution


class Fine(nn.Module):
    """Sees a checkerboard of single pixels, which no resized copy has, and the mean colour."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Identity()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        height, width = x.shape[-2:]
        board = (torch.arange(height)[:, None] + torch.arange(width)[None]).remainder(2).mul(2.0).sub(1).to(x)
        return self.head(self.fine(torch.cat([(x.mean(1) * board).mean((1, 2))[:, None] * 10, x.mean((2, 3))], 1)))


def boards(n=64, shape=(40, 40), seed=0):
    """Smooth images with a checkerboard of a strength of their own, and that strength times 10."""
    generator = torch.Generator().manual_seed(seed)
    smooth = nn.functional.interpolate(torch.rand(n, 3, 3, 3, generator=generator), shape, mode="bilinear")
    strength = torch.rand(n, generator=generator) * 0.2 + 0.05
    board = (torch.arange(shape[0])[:, None] + torch.arange(shape[1])[None]).remainder(2) * 2.0 - 1
    images = 0.3 + 0.4 * smooth + strength[:, None, None, None] * board
    own = ((0.3 + 0.4 * smooth).mean(1) * board).mean((1, 2))
    return images, 10 * (strength + own)


@pytest.fixture(scope="module")
def fine():
    images, strength = boards()
    asked = Watched(images)
    with pytest.MonkeyPatch.context() as patch:
        asked.watch(patch)
        fitted = Interpreter(
            Fine().eval(), "fine", spec=ImageSpec(size=(40, 40)), image_size=28, preset=TINY, precision="32"
        ).fit(images, concepts={"group": [0, 1, 2, 3] * 16}, image_metrics=("ssim",))
        fit_asked = set(asked.found)
        asked.found.clear()
        yield fitted, images, strength, asked, fit_asked


class Watched:
    """Notes who asks the model about the autoencoder's copies of the images."""

    def __init__(self, images):
        self.images, self.found, self.copies = images, [], None

    def watch(self, patch):
        for name in ("pictures_to_model", "images_to_model"):
            inner = getattr(InputAdapter, name)
            patch.setattr(InputAdapter, name, self.watching(inner))

    def watching(self, inner):
        def asked(adapter, pictures):
            if self.copies is None or self.copies.shape[1:] != pictures.shape[1:]:
                self.copies = adapter.to_images(self.images)
            if pictures.shape[1:] == self.copies.shape[1:]:
                apart = torch.cdist(pictures.detach().flatten(1).float(), self.copies.flatten(1)).amin(1)
                if bool((apart < 0.2).any()):
                    stack = [f for f in traceback.extract_stack() if "/posthoc_inn/" in f.filename]
                    names = [f"{Path(f.filename).stem}.{f.name}" for f in stack]
                    self.found.append(next((n for n in names if n.startswith(ALLOWED)), " > ".join(names[-6:])))
            return inner(adapter, pictures)

        return asked


ALLOWED = ("measure.resolution", "frechet.")
"""What asks about copies on purpose: what the size costs, and distances between pictures all of one size."""


def test_z_of_the_fits_rows_and_of_queries_is_that_of_the_images_themselves(fine):
    fitted, images, strength, _, _ = fine
    assert torch.allclose(fitted.pipeline.features(images)[:, 0], strength, atol=1e-4)
    assert torch.allclose(fitted.pipeline.z_of(images)[:, 0], strength, atol=1e-4)
    copies = fitted.pipeline.ask_model(fitted.adapter_.to_images(images))[0]
    assert copies[:, 0].abs().max() < 0.2 * strength.min()
    result = fitted.analyze("samples", images[:4], images=4, samples=2)
    # The cosine is against z of the image: pictures have no checkerboard, and reach no more than the rest of z does.
    seen = fitted.pipeline.ask_model(result.pictures.flatten(0, 1))[0].unflatten(0, (4, 2))
    cosine = torch.cosine_similarity(seen, fitted.pipeline.features(images[:4])[:, None], dim=-1).mean()
    assert result.similarity == pytest.approx(float(cosine), abs=1e-3)


def test_what_the_size_costs_is_said_by_the_fit(fine):
    fitted, images, *_ = fine
    told = fitted.metrics_["resolution"]
    pipeline = fitted.pipeline
    copies = pipeline.ask_model(pipeline.adapter.to_images(images))[0]
    every = torch.cosine_similarity(copies, pipeline.features(images), dim=1)
    assert told["similarity"] == pytest.approx(float(every.mean()), abs=0.05)
    assert told["similarity"] < 0.95
    assert (told["image_size"], told["model_size"]) == (28, [40, 40])


def test_no_answer_takes_z_of_an_image_from_the_autoencoders_copy(fine):
    fitted, images, _, asked, _ = fine
    asked.found.clear()
    some = images[:4]
    fitted.sample(some, n=2), fitted.invariances(some), fitted.reconstruct(some, z_of=some.flip(0))
    fitted.edit(some, "group", source=some.flip(0)), fitted.outside(images), fitted.log_likelihood(some)
    compare_groups({"own": fitted.pipeline}, {"all": images}, lambda x: x.mean((2, 3)), samples=2)
    assert not asked.found


# The response map is left out: UMAP is compiled for half a minute, and what it asks is what `response` asks.
@pytest.mark.parametrize("name", sorted({e.name for e in get_plugin_manager().analyses} - {"response-map"}))
def test_no_analysis_takes_z_of_an_image_from_the_autoencoders_copy(fine, name):
    fitted, images, _, asked, fit_asked = fine
    assert fit_asked == {"measure.resolution"}
    asked.found.clear()
    few = {"images": 8} if "images" in (get_plugin_manager().analyses.get(name).metadata.get("options") or {}) else {}
    own = {
        "samples": {"refine": 2},
        "pair-shares": {"concepts": {"group": [0, 1, 2, 3] * 16}},
        "inversion": {"methods": ("optimization",), "optimization_steps": 2, "few": 4},
    }
    fitted.analyze(name, images, **few, **own.get(name, {}))
    assert all(one.startswith(ALLOWED) for one in asked.found), asked.found
