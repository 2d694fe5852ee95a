"""Folders as people have them: other formats, links, tiny pictures, few pictures, deep modes, very long ones."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from posthoc_inn.cli.data import folder_images
from posthoc_inn.errors import DataError, PosthocInnWarning
from posthoc_inn.images import ImageFiles, find_image_files, fit_canonical, pil_to_tensor
from posthoc_inn.images.image_files import image_size


def fill(folder, count, size=(40, 30), suffix="png", seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for k in range(count):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:03}.{suffix}")
    return folder


def opened(folder, *, needed=None, size=None, held_out=None):
    return folder_images(folder, size=size, channels=3, held_out=held_out, seed=0, needed=needed)


def test_what_is_left_out_is_counted_by_reason(tmp_path):
    folder = fill(tmp_path / "mixed", 3)
    fill(folder, 5, suffix="tif")
    fill(tmp_path / "elsewhere", 2)
    (folder / "dog").symlink_to(tmp_path / "elsewhere")
    (folder / "notes.txt").write_text("no image")
    with pytest.warns(PosthocInnWarning, match=r"left out 5 \.tif files, 1 linked folders"):
        assert len(find_image_files(folder)) == 3
    only = fill(tmp_path / "only", 2, suffix="tif")
    with pytest.raises(DataError, match=r"left out: 2 \.tif files"):
        find_image_files(only)


def test_one_tiny_picture_does_not_set_the_size_of_all(tmp_path):
    folder = fill(tmp_path / "photos", 20, size=(120, 90))
    Image.new("RGB", (1, 1)).save(folder / "spacer.png")
    found = opened(folder)
    assert found.train[0].shape == (3, 90, 120)
    assert found.notes == ("1 of 21 images are smaller than the 90 x 120 px at which they are read, and are enlarged.",)
    assert opened(folder, needed=(64, 64)).train[0].shape == (3, 64, 64)
    assert opened(folder, needed=(64, 64), size=96).train[0].shape == (3, 96, 96)
    assert opened(folder, needed=(224, 224)).train[0].shape == (3, 224, 224)
    assert opened(folder, needed=(224, 224)).notes[0].startswith("21 of 21 images")


def test_a_folder_of_many_ratios_is_read_as_squares_and_one_ratio_whole(tmp_path):
    mixed = fill(fill(tmp_path / "mixed", 6, size=(120, 90)) / "tall", 6, size=(60, 80)).parent
    assert opened(mixed).train[0].shape == (3, 90, 90)
    assert opened(fill(tmp_path / "tall", 6, size=(30, 60))).train[0].shape == (3, 60, 30)
    assert opened(fill(tmp_path / "wide", 6, size=(60, 30)), needed=(20, 50)).train[0].shape == (3, 20, 50)


def test_photographs_that_lie_on_a_side_are_measured_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for k in range(6):
        Image.new("RGB", (60, 30)).save(tmp_path / f"{k}.jpg", exif=exif)
    assert opened(tmp_path).train[0].shape == (3, 60, 30)


def test_the_parts_of_a_data_set_are_found_under_their_usual_names(tmp_path):
    fill(tmp_path / "scans" / "Training", 12)
    fill(tmp_path / "scans" / "Testing", 4)
    found = opened(tmp_path / "scans")
    assert (len(found.train), len(found.held_out), found.classes) == (12, 4, ())


@pytest.mark.parametrize(("count", "parts"), [(4, (2, 2)), (10, (8, 2)), (40, (36, 4))])
def test_small_folders_are_split_so_that_both_parts_can_be_used(tmp_path, count, parts):
    folder = fill(tmp_path / "few", count)
    assert (len(ImageFiles(folder, 28, train=True)), len(ImageFiles(folder, 28, train=False))) == parts


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_pictures_are_refused_with_their_number(tmp_path, count):
    folder = fill(tmp_path / "few", count)
    with pytest.raises(DataError, match=rf"holds {count} images?: at least 4 are needed"):
        ImageFiles(folder, 28, train=True)


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("float32", 0, 255), ("float32", -1000, 3000), ("int32", 0, 255), ("int32", -1000, 3000), ("int32", 0, 10**6)],
)
def test_deep_modes_of_unknown_range_are_refused(dtype, low, high):
    values = np.linspace(low, high, 100).reshape(10, 10).astype(dtype)
    with pytest.raises(DataError, match=re.escape(f"values from {low:g} to {high:g}")):
        pil_to_tensor(Image.fromarray(values))


def test_deep_modes_in_their_range_keep_their_depth(tmp_path):
    unit = np.linspace(0, 1, 100, dtype="float32").reshape(10, 10)
    assert torch.equal(pil_to_tensor(Image.fromarray(unit))[0], torch.from_numpy(unit))
    sixteen = np.linspace(0, 65535, 100).astype("uint16").reshape(10, 10)
    assert float(pil_to_tensor(Image.fromarray(sixteen)).max()) == 1
    Image.fromarray((sixteen // 1000).astype("uint16")).save(tmp_path / "dark.png")
    with Image.open(tmp_path / "dark.png") as dark:
        assert 0 < float(pil_to_tensor(dark).max()) < 0.01


@pytest.mark.parametrize("shape", [(1, 100_000), (100_000, 1)])
def test_a_very_long_picture_takes_little_memory_and_keeps_its_middle(shape):
    long = torch.zeros(1, 3, *shape)
    height, width = shape
    long[..., height // 2 - (height > 1) * 50 : height // 2 + 50, width // 2 - (width > 1) * 50 : width // 2 + 50] = 1
    assert torch.allclose(fit_canonical(long, 28, 3), torch.ones(1, 3, 28, 28), atol=1e-5)


def test_pictures_that_are_not_that_long_are_resized_as_ever():
    image = torch.rand(1, 3, 30, 110, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.interpolate(image, (28, 102), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.allclose(fit_canonical(image, 28, 3), whole[..., 37:65], atol=1e-6)


def test_sizes_are_read_from_headers(tmp_path):
    fill(tmp_path, 1, size=(7, 5))
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert image_size(tmp_path / "000.png") == (7, 5)
    assert image_size(tmp_path / "broken.png") == (0, 0)
