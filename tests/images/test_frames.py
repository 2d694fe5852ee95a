"""What the model looks at is what the picture shows, and the other way round: checked by coordinates painted in."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from posthoc_inn import ImageSpec, ShapeError
from posthoc_inn.drawing import columns_of, grid, to_png
from posthoc_inn.images import Normalization, apply_spec, fit_canonical
from posthoc_inn.images.adapter import InputAdapter
from posthoc_inn.images.spec import framed


def painted(height, width):
    """An image whose red is the row and whose green the column of each pixel, from 0 to 1."""
    y, x = (torch.arange(n, dtype=torch.float32).add(0.5) / n for n in (height, width))
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([rows, columns, torch.zeros_like(rows)])[None]


def borders(pictures):
    """Where in the whole image the outer edges of a painted picture lie: top, bottom, left, right."""
    found = []
    for channel, axis in ((0, -1), (1, -2)):
        line = pictures[0, channel].mean(axis).double()
        n = len(line)
        # Away from the ends, where resizing repeats the border's pixels.
        inner = torch.arange(n)[n // 4 : n - n // 4].double()
        slope, at = np.polyfit(inner.numpy() + 0.5, line[n // 4 : n - n // 4].numpy(), 1)
        found += [at, at + slope * n]
    return np.array(found)


CASES = [
    ((90, 120), ImageSpec(size=(64, 64))),
    ((90, 120), ImageSpec(size=(64, 64), crop=0.75)),
    ((120, 80), ImageSpec(size=(32, 64))),
    ((120, 80), ImageSpec(size=(64, 32), crop=0.875)),
    ((64, 128), ImageSpec(size=(64, 128))),
    ((100, 300), ImageSpec(size=(224, 224), crop=0.875, interpolation="bicubic")),
    ((50, 70), ImageSpec(crop=0.6)),
]


@pytest.mark.parametrize(("shape", "spec"), CASES)
@pytest.mark.parametrize("size", [28, 64])
def test_a_picture_shows_what_the_model_looks_at(shape, spec, size):
    image = painted(*shape)
    own = tuple(round(n * spec.crop) for n in shape) if spec.size is None else spec.size
    adapter = InputAdapter(spec.replace(size=own), None, size, 3)
    seen, picture = adapter.to_model(image), adapter.to_images(image)
    assert picture.shape[-2:] == adapter.picture_shape
    assert min(picture.shape[-2:]) == size
    assert abs(picture.shape[-1] / picture.shape[-2] - own[1] / own[0]) < 0.03
    # Within half a pixel of the coarser of the two, at each border.
    pixel = (borders(seen)[1::2] - borders(seen)[::2]) / np.minimum(seen.shape[-2:], picture.shape[-2:])
    assert (np.abs(borders(picture) - borders(seen)) < 0.5 * pixel.repeat(2) + 1e-3).all()
    if spec.size is not None:
        assert torch.equal(seen, apply_spec(image, spec))


@pytest.mark.parametrize(("shape", "spec"), CASES[:5])
def test_the_model_gets_a_picture_neither_cropped_nor_zoomed(shape, spec):
    adapter = InputAdapter(spec, None, 32, 3)
    picture = adapter.to_images(painted(*shape))
    again = adapter.pictures_to_model(adapter.from_square(adapter.to_square(picture)))
    assert again.shape[-2:] == spec.size
    assert np.allclose(borders(again), borders(picture), atol=2e-3)


@pytest.mark.parametrize("shape", [(64, 128), (96, 40), (48, 48), (33, 65)])
def test_of_the_users_own_tensors_the_picture_shows_all(shape):
    normalization = Normalization((0.5,) * 3, (0.25,) * 3, "given")
    adapter = InputAdapter(ImageSpec(size=shape, mean=(0.5,) * 3, std=(0.25,) * 3), normalization, 32, 3)
    tensors = normalization.apply(painted(*shape))
    assert adapter.to_model(tensors) is tensors
    picture = adapter.to_images(tensors)
    assert np.allclose(borders(picture), [0, 1, 0, 1], atol=2e-3)
    square = adapter.to_square(picture)
    assert square.shape == (1, 3, 32, 32)
    assert np.allclose(borders(square), [0, 1, 0, 1], atol=2e-3)
    inputs = adapter.pictures_to_model(adapter.from_square(square))
    assert inputs.shape == tensors.shape
    assert np.allclose(borders(normalization.undo(inputs)), [0, 1, 0, 1], atol=2e-3)


def test_images_of_another_ratio_than_the_fits_are_refused():
    adapter = InputAdapter(ImageSpec(size=(64, 128)), Normalization((0.0,), (1.0,), "given"), 32, 3)
    for ask in (adapter.to_model, adapter.to_images):
        assert len(ask(torch.rand(2, 3, 32, 64))) == 2
        with pytest.raises(ShapeError, match=r"64 x 64 pixels, and those of the fit were 64 x 128.*pad"):
            ask(torch.rand(2, 3, 64, 64))
    with pytest.raises(ShapeError, match="Pictures are 32 x 32 pixels"):
        adapter.pictures_to_model(torch.rand(1, 3, 32, 32))


def test_square_images_and_a_whole_view_are_treated_as_ever():
    images = torch.rand(2, 3, 90, 70)
    adapter = InputAdapter(ImageSpec(size=(64, 64)), None, 28, 3)
    assert torch.equal(adapter.to_images(images), fit_canonical(images, 28, 3))
    square = adapter.to_images(images)
    assert adapter.to_square(square) is square
    assert adapter.from_square(square) is square
    assert torch.equal(adapter.pictures_to_model(square), apply_spec(square, adapter.spec))


def test_a_generators_frame_is_the_central_square_and_the_models_crop_of_it():
    adapter = InputAdapter(ImageSpec(size=(32, 32), crop=0.5), None, 28, 3, frame="square")
    image = painted(64, 64)
    assert np.allclose(borders(adapter.to_images(image)), [0, 1, 0, 1], atol=2e-3)
    assert np.allclose(borders(adapter.pictures_to_model(image)), [0.25, 0.75, 0.25, 0.75], atol=0.02)


def test_very_long_images_have_pictures_of_bounded_size_and_their_own_ratio():
    height, width = InputAdapter(ImageSpec(size=(10, 1000)), None, 64, 1).picture_shape
    assert height * width <= 4.2 * 64 * 64
    assert width == 100 * height
    assert framed(torch.rand(1, 1, 10, 1000), ImageSpec(size=(10, 1000)), (height, width), 1).shape[-1] == width


@pytest.mark.parametrize("shape", [(32, 64), (64, 32), (40, 40)])
def test_a_drawn_square_stays_square_in_figures(shape):
    image = torch.zeros(1, 3, *shape)
    image[:, 0, 10:20, 12:22] = 1
    png = to_png(grid(columns_of(torch.stack([image, image], 1), headings=["a", "b"])))
    red = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    red = (red[..., 0] > 200) & (red[..., 1] < 60)
    half = red.shape[1] // 2
    for side in (red[:, :half], red[:, half:]):
        rows, columns = (np.flatnonzero(side.any(axis)) for axis in (1, 0))
        wide, high = len(columns), len(rows)
        assert wide > 20
        assert abs(wide - high) <= 2
        assert side.sum() == wide * high
