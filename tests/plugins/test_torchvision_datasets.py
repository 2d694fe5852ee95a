"""The torchvision plugin's data sets: read as they lie, nothing written, nothing downloaded unasked."""

import gzip
import os
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from posthoc_inn.datasets.color_digits import blend
from posthoc_inn.errors import ConfigError, DataError
from posthoc_inn.plugins import PluginManager

pytest.importorskip("torchvision")
plugin = pytest.importorskip("posthoc_inn_torchvision")

from posthoc_inn_torchvision.arrays import read_idx  # noqa: E402


@pytest.fixture(scope="module")
def manager():
    manager = PluginManager([])
    manager.load()
    manager.register(plugin, distribution="posthoc-inn-torchvision")
    return manager


def write_idx(path, array, packed):
    content = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content += array.numpy().tobytes()
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


@pytest.fixture(params=[True, False], ids=["packed", "unpacked"])
def mnist(tmp_path, request):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for part, n in (("train", 20), ("t10k", 7)):
        images = torch.randint(256, (n, 28, 28), generator=generator, dtype=torch.uint8)
        labels = torch.arange(n, dtype=torch.uint8) % 10
        write_idx(raw / f"{part}-images-idx3-ubyte", images, request.param)
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels, request.param)
    return tmp_path / "data"


def contents(root):
    return sorted((str(p), p.stat().st_size) for p in root.rglob("*"))


def test_mnist_is_read_as_it_lies_and_nothing_is_written(manager, mnist):
    before = contents(mnist)
    data = manager.build_dataset("mnist", str(mnist))
    held_out = manager.build_dataset("mnist", str(mnist), train=False)
    assert (len(data), len(held_out)) == (20, 7)
    image, label = data[13]
    assert (image.shape, image.dtype, label) == ((1, 28, 28), torch.float32, 3)
    assert torch.equal(image * 255, data.tensors()[0][13].float())
    images, labels = next(iter(DataLoader(data, batch_size=5)))
    assert torch.equal(images[4], data[4][0])
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert contents(mnist) == before


@pytest.mark.parametrize("inside", ["", "MNIST", "MNIST/raw"])
def test_any_directory_down_to_the_files_may_be_given(manager, mnist, inside):
    assert len(manager.build_dataset("mnist", str(mnist / inside))) == 20


def test_color_mnist_depends_on_seed_and_position_alone(manager, mnist):
    first = manager.build_dataset("color-mnist", str(mnist), seed=3, draws=2)
    again = manager.build_dataset("color-mnist", str(mnist), seed=3, draws=1)
    other = manager.build_dataset("color-mnist", str(mnist), seed=4)
    assert len(first) == 40
    assert first[5][0].shape == (3, 28, 28)
    assert torch.equal(first[5][0], again[5][0])
    assert not torch.equal(first[5][0], first[25][0])
    assert first[5][1] == first[25][1] == 5
    assert not torch.equal(first[5][0], other[5][0])
    attributes = first.attributes(5)
    assert set(attributes) == set(manager.datasets.get("color-mnist").metadata["attribute_names"])
    gray = manager.build_dataset("mnist", str(mnist))[5][0]
    assert torch.allclose(first[5][0], blend(gray, attributes["foreground"][None], attributes["background"][None])[0])


def test_color_mnists_parts_have_colours_of_their_own(manager, mnist):
    train, held_out = (manager.build_dataset("color-mnist", str(mnist), train=t) for t in (True, False))
    assert not torch.equal(train.foreground[:7], held_out.foreground)


@pytest.mark.parametrize("name", ["mnist", "color-mnist", "fashion-mnist", "cifar10", "celeba"])
def test_missing_files_say_what_is_expected_where_and_how_to_get_it(manager, tmp_path, name, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("a download was tried"))
    expected = {"cifar10": "data_batch_1", "celeba": "list_attr_celeba.txt"}.get(name, "train-images-idx3-ubyte")
    with pytest.raises(DataError, match=f"is not in .*{expected}.*Nothing was downloaded: pass download=True"):
        manager.build_dataset(name, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_fails_says_so(manager, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", fail)
    with pytest.raises(DataError, match=r"MNIST could not be downloaded to .*OSError: no route"):
        manager.build_dataset("mnist", str(tmp_path), download=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-1], "states 60 bytes of content for the shape .* and holds 59"),
        (lambda b: b + b"x", "and holds more"),
        (lambda b: b[:9], "ends within its header"),
        (lambda b: b"", "it starts with nothing"),
        (lambda b: b"\x89PNG" + b[4:], "is not an IDX file of bytes: it starts with 89 50 4e 47"),
        (lambda b: b[:4] + b"\xff\xff\xff\xff" + b[8:], "which is not believed"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_damaged_idx_files_are_told_from_good_ones(tmp_path, damage, message, packed):
    content = b"\0\0\x08\x03" + struct.pack(">3I", 5, 3, 4) + bytes(range(60))
    path = tmp_path / ("a.gz" if packed else "a")
    path.write_bytes(gzip.compress(content) if packed else content)
    assert read_idx(path).shape == (5, 3, 4)
    path.write_bytes(gzip.compress(damage(content)) if packed else damage(content))
    with pytest.raises(DataError, match=message):
        read_idx(path)


def test_a_packed_file_cut_short_is_an_error(tmp_path):
    content = gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 5000) + os.urandom(5000))
    (tmp_path / "a.gz").write_bytes(content[:3000])
    with pytest.raises(DataError, match=r"cannot be read.*cut short"):
        read_idx(tmp_path / "a.gz")


def test_images_and_labels_of_different_length_are_refused(manager, mnist):
    raw = mnist / "MNIST" / "raw"
    for file in raw.glob("train-labels*"):
        file.unlink()
    write_idx(raw / "train-labels-idx1-ubyte", torch.zeros(3, dtype=torch.uint8), packed=False)
    with pytest.raises(DataError, match="20 images and 3 labels"):
        manager.build_dataset("mnist", str(mnist))


ATTRIBUTES = ("Smiling", "Male", "Young")


@pytest.fixture(params=["directory", "archive", "csv"])
def celeba(tmp_path, request):
    base = tmp_path / "celeba"
    pictures = base / "img_align_celeba"
    pictures.mkdir(parents=True)
    rows = []
    for i in range(30):
        name = f"{i + 1:06}.jpg"
        Image.new("RGB", (89, 109), (i * 8, 100, 50)).save(pictures / name, quality=95)
        rows.append((name, i % 10, [(i >> k) & 1 for k in range(3)]))
    if request.param == "csv":
        lines = [f"{n},{who},{','.join(map(str, a))}" for n, who, a in rows]
        (base / "attributes.csv").write_text("\n".join(["image_id,identity," + ",".join(ATTRIBUTES), *lines]))
    else:
        lines = [n + "".join(f" {2 * v - 1:2}" for v in a) for n, _, a in rows]
        (base / "list_attr_celeba.txt").write_text("\n".join(["30", " ".join(ATTRIBUTES), *lines]) + "\n")
        (base / "identity_CelebA.txt").write_text("\n".join(f"{n} {who}" for n, who, _ in rows))
    if request.param == "archive":
        with zipfile.ZipFile(base / "img_align_celeba.zip", "w") as archive:
            for file in sorted(pictures.iterdir()):
                archive.write(file, f"img_align_celeba/{file.name}")
                file.unlink()
        pictures.rmdir()
    return tmp_path


def test_celeba_comes_with_named_attributes(manager, celeba):
    data = manager.build_dataset("celeba", str(celeba), size=32)
    image, target = data[0]
    assert (image.shape, target.dtype) == ((3, 32, 32), torch.int64)
    assert data.attribute_names == ATTRIBUTES
    number = int(data.names[0][:6]) - 1
    assert target.tolist() == [(number >> k) & 1 for k in range(3)]
    assert {k: int(v) for k, v in data.attributes(0).items()} == dict(zip(ATTRIBUTES, target.tolist(), strict=True))
    assert image[0].mean() == pytest.approx(number * 8 / 255, abs=0.02)


def test_celebas_held_out_part_shares_no_person_with_the_training_part(manager, celeba):
    train, held_out = (manager.build_dataset("celeba", str(celeba), train=t, seed=1) for t in (True, False))
    assert sorted(train.names + held_out.names) == [f"{i + 1:06}.jpg" for i in range(30)]
    who = [{(int(n[:6]) - 1) % 10 for n in part.names} for part in (train, held_out)]
    assert not who[0] & who[1]
    assert held_out.names == manager.build_dataset("celeba", str(celeba), train=False, seed=1).names
    assert held_out.names != manager.build_dataset("celeba", str(celeba), train=False, seed=2).names


def test_celebas_published_parts_are_kept(manager, celeba):
    parts = {f"{i + 1:06}.jpg": (0 if i < 20 else 1 if i < 25 else 2) for i in range(30)}
    (celeba / "celeba" / "list_eval_partition.txt").write_text("\n".join(f"{n} {p}" for n, p in parts.items()))
    train, held_out = (manager.build_dataset("celeba", str(celeba), train=t) for t in (True, False))
    assert (len(train), len(held_out)) == (20, 5)
    assert {parts[n] for n in held_out.names} == {2}


def test_celeba_is_read_by_worker_processes(manager, celeba):
    data = manager.build_dataset("celeba", str(celeba), size=16)
    assert data[0][0].shape == (3, 16, 16)
    plain = next(iter(DataLoader(data, batch_size=4)))
    worked = next(iter(DataLoader(data, batch_size=4, num_workers=1)))
    assert torch.equal(plain[0], worked[0])


@pytest.fixture
def photos(tmp_path):
    for c, name in enumerate(("cats", "dogs")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (30 + i, 40), (255 * c, 10 * i, 0)).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_an_image_folder_is_split_by_seed_within_each_class(manager, photos):
    train, held_out = (
        manager.build_dataset("image-folder", str(photos), train=t, size=16, held_out=0.2) for t in (True, False)
    )
    assert train.classes == ("cats", "dogs")
    assert sorted(held_out.labels) == [0, 0, 1, 1]
    assert len(train) == 16
    assert not set(train.files) & set(held_out.files)
    image, label = held_out[3]
    assert (image.shape, label) == ((3, 16, 16), 1)
    assert image[0].min() == pytest.approx(1)
    assert manager.build_dataset("image-folder", str(photos), channels=1)[0][0].shape == (1, 64, 64)


def test_train_and_test_directories_are_the_parts(manager, photos, tmp_path):
    root = tmp_path / "parts"
    root.mkdir()
    photos.rename(root / "train")
    (root / "val" / "dogs").mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(root / "val" / "dogs" / "a.png")
    held_out = manager.build_dataset("image-folder", str(root), train=False)
    assert held_out.labels == [1]
    assert len(manager.build_dataset("image-folder", str(root))) == 20
    (root / "val" / "birds").mkdir()
    Image.new("RGB", (20, 20)).save(root / "val" / "birds" / "a.png")
    with pytest.raises(DataError, match=r"has the classes birds, which .*train has not"):
        manager.build_dataset("image-folder", str(root), train=False)


def test_pictures_without_classes_are_one_class(manager, photos):
    data = manager.build_dataset("image-folder", str(photos / "cats"))
    assert data.classes == ("cats",)
    assert set(data.labels) == {0}


def test_wrong_options_of_an_image_folder_are_listed_together(manager, photos):
    with pytest.raises(ConfigError, match="size must be 8 to 4096 pixels, got 2; channels must be 1 or 3, got 2"):
        manager.build_dataset("image-folder", str(photos), size=2, channels=2)
    with pytest.raises(DataError, match="no folder"):
        manager.build_dataset("image-folder", str(photos / "nowhere"))


REAL = os.environ.get("POSTHOC_INN_DATA_DIR", "")


@pytest.mark.skipif(not REAL, reason="POSTHOC_INN_DATA_DIR names no directory with data sets")
def test_real_mnist_is_what_it_is_known_to_be(manager):
    root = next((p for p in (Path(REAL, "mnist"), Path(REAL)) if any(p.rglob("train-images*"))), None)
    if root is None:
        pytest.skip("there is no MNIST in POSTHOC_INN_DATA_DIR")
    train, test = (manager.build_dataset("mnist", str(root), train=t) for t in (True, False))
    assert (len(train), len(test)) == (60000, 10000)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert float(train.pixels.float().mean()) / 255 == pytest.approx(0.1307, abs=1e-4)
