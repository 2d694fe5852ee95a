"""Canonical images to a network's input and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from posthoc_inn.config import ImageSpec
from posthoc_inn.errors import ConfigError, ShapeError
from posthoc_inn.images import apply_spec, fit_canonical, match_channels, resize, undo_spec_normalization

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def rand(*shape, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def test_nothing_to_do_returns_the_very_same_tensor():
    images = rand(2, 3, 8, 8)
    assert apply_spec(images, ImageSpec()) is images
    assert apply_spec(images, ImageSpec(size=(8, 8))) is images
    assert apply_spec(images[:, :1], ImageSpec(channels=1)).data_ptr() == images.data_ptr()
    assert fit_canonical(images, 8, 3) is images
    assert undo_spec_normalization(images, ImageSpec()) is images


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "area"])
@pytest.mark.parametrize("size", [(5, 7), (32, 20)])
def test_every_interpolation_gives_the_size_and_stays_in_range(interpolation, size):
    spec = ImageSpec(size=size, interpolation=interpolation)
    out = apply_spec((rand(2, 3, 16, 16) > 0.5).float(), spec)
    assert out.shape == (2, 3, *size)
    assert out.min() >= 0
    assert out.max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "area"])
@pytest.mark.parametrize("size", [4, 9])
def test_gradients_reach_the_pixels_and_are_right(interpolation, size):
    spec = ImageSpec(size=(size, size), interpolation=interpolation, crop=0.9, **IMAGENET)
    # Far from 0 and 1, so that the clamp of bicubic results is not met.
    images = (0.4 + 0.2 * rand(1, 3, 6, 7, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: apply_spec(x, spec), images)
    apply_spec(images, spec).sum().backward()
    assert images.grad.abs().sum() > 0


def test_gradients_pass_through_grey_to_colour_and_back():
    for channels, spec_channels in ((1, 3), (3, 1)):
        images = rand(2, channels, 6, 6).requires_grad_()
        apply_spec(images, ImageSpec(channels=spec_channels)).sum().backward()
        assert torch.isfinite(images.grad).all()
        assert images.grad.abs().min() > 0


@pytest.mark.parametrize(("interpolation", "filter_"), [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)])
@pytest.mark.parametrize("size", [7, 13, 40])
def test_resizing_agrees_with_pillow(interpolation, filter_, size):
    image = rand(1, 1, 24, 24)
    ours = resize(image, size, interpolation)[0, 0].numpy()
    theirs = np.asarray(Image.fromarray(image[0, 0].numpy()).resize((size, size), filter_))
    np.testing.assert_allclose(ours, theirs.clip(0, 1), atol=1e-5)


def test_downsizing_is_antialiased():
    stripes = torch.zeros(1, 1, 64, 64)
    stripes[..., ::2] = 1
    for interpolation in ("bilinear", "bicubic", "area"):
        assert (resize(stripes, 16, interpolation)[..., 2:-2] - 0.5).abs().max() < 0.05


@pytest.mark.parametrize("shape", [(75, 50), (50, 75), (64, 64), (25, 22)])
@pytest.mark.parametrize(("size", "crop"), [(56, 0.875), (56, 1.0), (24, 0.7), (16, 0.95)])
def test_size_and_crop_mean_what_they_mean_in_torchvision(shape, size, crop):
    transforms = pytest.importorskip("torchvision.transforms.v2")
    spec = ImageSpec(size=(size, size), crop=crop, **IMAGENET)
    images = rand(1, 3, *shape)
    theirs = transforms.Compose(
        [
            transforms.Resize(math.floor(size / crop + 1e-6), antialias=True),
            transforms.CenterCrop(size),
            transforms.Normalize(**{k: list(v) for k, v in IMAGENET.items()}),
        ]
    )(images)
    torch.testing.assert_close(apply_spec(images, spec), theirs, atol=1e-5, rtol=0)


def test_a_crop_without_a_size_cuts_only():
    images = rand(1, 3, 10, 20)
    assert torch.equal(apply_spec(images, ImageSpec(crop=0.5)), images[:, :, 2:7, 5:15])


def test_normalisation_is_undone():
    spec = ImageSpec(**IMAGENET)
    images = rand(2, 3, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(undo_spec_normalization(apply_spec(images, spec), spec), images)
    one = apply_spec(torch.zeros(1, 3, 2, 2), spec)
    torch.testing.assert_close(one[0, :, 0, 0], -torch.tensor(IMAGENET["mean"]) / torch.tensor(IMAGENET["std"]))


def test_channels_are_matched():
    grey = rand(2, 1, 4, 4)
    colour = match_channels(grey, 3)
    assert all(torch.equal(colour[:, c : c + 1], grey) for c in range(3))
    torch.testing.assert_close(match_channels(colour, 1), grey)
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
    assert match_channels(red, 1).item() == pytest.approx(0.299)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_dtype_is_kept(dtype):
    images = rand(1, 1, 9, 9).to(dtype)
    out = apply_spec(images, ImageSpec(size=(5, 5), interpolation="bicubic", **IMAGENET))
    assert out.dtype == dtype
    assert fit_canonical(images, 12, 3).dtype == dtype


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (28, 28), (10, 300), (29, 28)])
def test_canonical_images_are_brought_to_a_square(shape):
    out = fit_canonical(rand(2, 1, *shape), 28, 3)
    assert out.shape == (2, 3, 28, 28)
    assert out.min() >= 0
    assert out.max() <= 1


def test_the_square_is_the_centre():
    image = torch.zeros(1, 1, 20, 60)
    image[..., 20:40] = 1
    assert fit_canonical(image, 20, 1).min() == 1
    assert fit_canonical(image.transpose(2, 3), 20, 1).min() == 1


def test_colour_is_turned_to_grey_for_a_grey_autoencoder():
    assert fit_canonical(rand(2, 3, 16, 16), 8, 1).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (torch.rand(3, 8, 8), r"Add the batch: images\[None\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"images\.float\(\) / 255"),
        (torch.rand(2, 8, 8, 3), r"permute\(0, 3, 1, 2\)"),
        (torch.rand(2, 5, 8, 8), "1 or 3 channels, got 5"),
        (torch.rand(2, 3, 0, 8), "at least one pixel"),
        ([1, 2], "must be a tensor"),
    ],
)
def test_what_is_no_canonical_batch_is_refused(images, match):
    with pytest.raises(ShapeError, match=match):
        apply_spec(images, ImageSpec(size=(4, 4)))
    with pytest.raises(ShapeError, match=match):
        fit_canonical(images, 4, 3)


def test_impossible_arguments_are_refused():
    images = rand(1, 3, 4, 4)
    with pytest.raises(ConfigError, match="size must be"):
        resize(images, 0)
    with pytest.raises(ConfigError, match="interpolation must be one of"):
        resize(images, 2, "lanczos")
    with pytest.raises(ConfigError, match="channels must be 1 or 3"):
        match_channels(images, 2)
    with pytest.raises(ConfigError, match="positive whole number of pixels"):
        fit_canonical(images, -1, 3)


def test_an_empty_batch_passes():
    assert apply_spec(torch.rand(0, 1, 8, 8), ImageSpec(size=(4, 4), **IMAGENET)).shape == (0, 3, 4, 4)
