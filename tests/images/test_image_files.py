"""Pictures from files that are not trusted."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from posthoc_inn.errors import ConfigError, DataError, PosthocInnWarning
from posthoc_inn.images import (
    BatchSource,
    ImageFiles,
    find_image_files,
    load_image,
    load_image_files,
    stack_image_files,
)

RED = (255, 0, 0)


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


def save(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_each_format_is_read(tmp_path, suffix):
    options = {"quality": 100} if suffix != "png" else {}
    path = save(tmp_path / f"a.{suffix}", Image.new("RGB", (8, 6), (200, 100, 50)), **options)
    image = load_image(path)
    assert image.shape == (3, 6, 8)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    torch.testing.assert_close(image[:, 3, 3], torch.tensor([200, 100, 50]) / 255, atol=0.02, rtol=0)


def test_grey_stays_grey_unless_asked(tmp_path):
    path = save(tmp_path / "a.png", Image.new("L", (4, 4), 51))
    assert load_image(path).shape == (1, 4, 4)
    assert load_image(path).unique().tolist() == pytest.approx([0.2])
    assert load_image_files(path, channels=3)[0].shape == (3, 4, 4)


def test_black_and_white_is_read(tmp_path):
    image = load_image(save(tmp_path / "a.png", Image.new("1", (4, 4), 1)))
    assert image.shape == (1, 4, 4)
    assert image.min() == 1


def test_sixteen_bits_keep_their_depth(tmp_path):
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    image = load_image(save(tmp_path / "a.png", Image.fromarray(values)))
    torch.testing.assert_close(image[0, 0], torch.tensor([0, 257, 32768, 65535]) / 65535)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_painted_over_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    path = tmp_path / "a.png"
    if mode == "P":
        indexed = Image.new("P", (4, 4), 1)
        indexed.putpalette([0, 0, 0, 9, 9, 9])
        indexed.putpixel((0, 0), 0)
        indexed.save(path, transparency=b"\xff\x00")
    else:
        (image.convert("LA") if mode == "LA" else image).save(path)
    loaded = load_image(path)
    assert loaded[:, 3, 3].min() == 1
    assert loaded[:, 0, 0].max() == 0
    if mode in ("RGBA", "LA"):
        assert loaded[:, 0, 1].mean().item() == pytest.approx(127 / 255, abs=0.01)
    assert len(loaded) == (1 if mode == "LA" else 3)


def test_a_transparent_colour_is_painted_over_white(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (4, 4), RED), transparency=RED)
    assert load_image(path).min() == 1


def test_palette_and_cmyk_become_colour(tmp_path):
    palette = save(tmp_path / "a.png", Image.new("RGB", (4, 4), RED).convert("P"))
    torch.testing.assert_close(load_image(palette)[:, 1, 1], torch.tensor([1.0, 0, 0]))
    cmyk = save(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100)
    torch.testing.assert_close(load_image(cmyk)[:, 1, 1], torch.tensor([1.0, 0, 0]), atol=0.02, rtol=0)


def test_exif_orientation_is_followed(tmp_path):
    image = Image.new("RGB", (8, 4), "black")
    image.paste("white", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    loaded = load_image(save(tmp_path / "a.jpg", image, exif=exif, quality=100))
    assert loaded.shape == (3, 8, 4)
    assert loaded[:, 1].mean() > 0.9
    assert loaded[:, 6].mean() < 0.1


def test_damaged_exif_does_not_matter(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("RGB", (8, 4), RED), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    assert load_image(path).shape == (3, 4, 8)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_the_first_frame_of_an_animation_is_used_and_said_so(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (8, 8), RED).save(path, save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])
    with pytest.warns(PosthocInnWarning, match=rf"a\.{suffix} is animated: its first frame is used"):
        loaded = load_image(path)
    assert loaded[0].mean() > 0.9


def test_a_jpeg_that_carries_a_second_picture_is_read(tmp_path):
    path = tmp_path / "a.jpg"
    more = [Image.new("RGB", (8, 8), "blue")]
    Image.new("RGB", (8, 8), RED).save(path, format="MPO", save_all=True, append_images=more)
    assert load_image(path)[0].mean() > 0.9


@pytest.mark.parametrize("suffix", ["gif", "bmp", "tiff", "ppm"])
def test_other_formats_are_refused_whatever_they_are_called(tmp_path, suffix):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, suffix)
    path = tmp_path / "a.png"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match=r"a\.png is not an image of a format that is read \(PNG, JPEG, WEBP\)"):
        load_image(path)


def test_a_format_can_be_shut_out(tmp_path):
    path = save(tmp_path / "a.webp", Image.new("RGB", (4, 4)))
    with pytest.raises(DataError, match=r"format that is read \(PNG\)"):
        load_image(path, formats=("PNG",))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_truncated_files_are_refused_by_name(tmp_path, suffix):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    path = save(tmp_path / f"a.{suffix}", noise)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=rf"a\.{suffix} is"):
        load_image(path)


def test_random_damage_gives_an_image_or_our_error(tmp_path):
    rng = np.random.default_rng(0)
    originals = []
    for suffix in ("png", "jpg", "webp"):
        noise = Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8))
        originals.append(save(tmp_path / f"a.{suffix}", noise).read_bytes())
    refused = 0
    for i in range(300):
        data = bytearray(originals[i % 3])
        for position in rng.integers(0, min(len(data), 200), 4):
            data[position] = rng.integers(256)
        path = tmp_path / "b.png"
        path.write_bytes(bytes(data))
        try:
            assert load_image(path, max_pixels=10_000).shape[0] in (1, 3)
        except DataError as error:
            assert "b.png" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 50


def test_the_pixel_limit_is_checked_before_decoding(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_header(8000, 8000))
    with pytest.raises(DataError, match=r"a\.png has 8000x8000 pixels, more than the limit of 50,000,000"):
        load_image(path)
    small = save(tmp_path / "b.png", Image.new("L", (20, 20)))
    with pytest.raises(DataError, match="20x20 pixels, more than the limit of 399"):
        load_image(small, max_pixels=399)
    assert load_image(small, max_pixels=400).shape == (1, 20, 20)


def test_a_bomb_is_refused_within_bounded_memory(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(100_000, 100_000))
    code = (
        "import resource, sys\n"
        "from posthoc_inn.images import load_image\n"
        "from posthoc_inn.errors import DataError\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)\n"
        "for limit in (50_000_000, 10**12):\n"
        "    try:\n"
        "        load_image(sys.argv[1], max_pixels=limit)\n"
        "    except DataError as error:\n"
        "        print('refused', 'bomb.png' in str(error))\n"
    )
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc")
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["refused", "True"] * 2, done.stderr


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.png does not exist"):
        load_image(tmp_path / "nothing.png")
    with pytest.raises(DataError, match="is a folder"):
        load_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="is no regular file"):
        load_image(tmp_path / "pipe.png")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.png is not an image"):
        load_image(tmp_path / "empty.png")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    save(tmp_path / "c.png", Image.new("RGB", (8, 4), RED))
    save(tmp_path / "a.JPG", Image.new("L", (4, 4), 7), format="JPEG")
    save(tmp_path / "b" / "z.webp", Image.new("RGB", (6, 6), "blue"))
    save(tmp_path / ".hidden" / "no.png", Image.new("RGB", (6, 6)))
    save(tmp_path / "._c.png", Image.new("RGB", (6, 6)))
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_stands_for_its_images_in_order(folder):
    names = [p.name for p in find_image_files(folder)]
    assert names == ["a.JPG", "z.webp", "c.png"]
    assert [tuple(i.shape) for i in load_image_files(folder)] == [(1, 4, 4), (3, 6, 6), (3, 4, 8)]
    both = load_image_files([folder / "c.png", str(folder / "b")])
    assert [tuple(i.shape) for i in both] == [(3, 4, 8), (3, 6, 6)]


def test_images_are_stacked_at_a_size(folder):
    images = stack_image_files(folder, 16)
    assert images.shape == (3, 3, 16, 16)
    torch.testing.assert_close(images[2, :, 8, 8], torch.tensor([1.0, 0, 0]))


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"There is no image in .* \(looked for \.png, \.jpg, \.jpeg, \.webp"):
        load_image_files(tmp_path)
    with pytest.raises(DataError, match="No image file was given"):
        load_image_files([])
    with pytest.raises(DataError, match="is no folder"):
        ImageFiles(tmp_path / "none", 8)


def test_linked_folders_are_not_followed(folder):
    (folder / "b" / "loop").symlink_to(folder, target_is_directory=True)
    with pytest.warns(PosthocInnWarning, match="left out 1 linked folders"):
        assert len(find_image_files(folder)) == 3


def test_a_folder_is_a_data_set_without_labels(folder):
    data = ImageFiles(folder, 16)
    assert len(data) == 3
    assert data[0].shape == (3, 16, 16)
    source = BatchSource(data, 2).check()
    assert not source.has_labels
    assert source.image_shape == (3, 16, 16)
    assert ImageFiles(folder, 8, channels=1)[2].shape == (1, 8, 8)


def test_a_folder_is_split_once_for_a_seed(tmp_path):
    for i in range(20):
        save(tmp_path / f"{i:02}.png", Image.new("L", (4, 4), i))
    parts = [ImageFiles(tmp_path, 4, train=t, held_out=0.25, seed=3).files for t in (True, False)]
    again = ImageFiles(tmp_path, 4, train=False, held_out=0.25, seed=3).files
    assert [len(p) for p in parts] == [15, 5]
    assert set(parts[0]) | set(parts[1]) == set(find_image_files(tmp_path))
    assert parts[1] == again
    assert ImageFiles(tmp_path, 4, train=False, held_out=0.25, seed=4).files != again
    with pytest.raises(ConfigError, match="held_out share"):
        ImageFiles(tmp_path, 4, held_out=1.0)


def test_one_image_cannot_be_split(tmp_path):
    save(tmp_path / "a.png", Image.new("L", (4, 4)))
    with pytest.raises(DataError, match="at least 4 are needed"):
        ImageFiles(tmp_path, 4, train=True)
