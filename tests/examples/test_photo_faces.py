"""The photo example: readers on synthetic weights, geometry, and a run with a tiny generator."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _beside_the_examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def write_manifest(directory, name, tensors, *, quantized=()):
    """Write tensors as face-api keeps them; return what a reader should find."""
    entries, data, expected = [], b"", {}
    for key, values in tensors.items():
        entry = {"name": key, "shape": list(values.shape), "dtype": "float32"}
        if key in quantized:
            low, scale = float(values.min()), float(values.max() - values.min()) / 255
            steps = np.round((values - low) / scale).astype(np.uint8)
            entry["quantization"] = {"dtype": "uint8", "scale": scale, "min": low}
            data, expected[key] = data + steps.tobytes(), steps * np.float32(scale) + np.float32(low)
        else:
            data, expected[key] = data + values.astype("<f4").tobytes(), values
        entries.append(entry)
    (directory / f"{name}.bin").write_bytes(data)
    manifest = [{"weights": entries, "paths": [f"{name}.bin"]}]
    (directory / f"{name}-weights_manifest.json").write_text(json.dumps(manifest))
    return expected


def random_tensors(shapes):
    rng = np.random.default_rng(0)
    return {name: (rng.normal(size=shape) * 0.1).astype(np.float32) for name, shape in shapes.items()}


def recognition_shapes():
    def conv(name, kernel, before, after):
        return {
            f"{name}/conv/filters": (kernel, kernel, before, after), f"{name}/conv/bias": (after,),
            f"{name}/scale/weights": (after,), f"{name}/scale/biases": (after,),
        }  # fmt: skip

    from photo_faces_parts.face_api import FaceRecognition

    shapes, before = conv("conv32_down", 7, 3, 32), 32
    for name in FaceRecognition.BLOCKS:
        after = int(name.removeprefix("conv").split("_")[0])
        shapes |= conv(f"{name}/conv1", 3, before, after) | conv(f"{name}/conv2", 3, after, after)
        before = after
    return shapes | {"fc": (256, 128)}


def separable(name, before, after):
    return {
        f"{name}/depthwise_filter": (3, 3, before, 1), f"{name}/pointwise_filter": (1, 1, before, after),
        f"{name}/bias": (after,),
    }  # fmt: skip


def dense_shapes(outputs):
    shapes, before = {"dense0/conv0/filters": (3, 3, 3, 32), "dense0/conv0/bias": (32,)}, 3
    for k, after in enumerate((32, 64, 128, 256)):
        for j in range(4):
            if (k, j) != (0, 0):
                shapes |= separable(f"dense{k}/conv{j}", before if j == 0 else after, after)
        before = after
    return shapes | {"fc/weights": (256, outputs), "fc/bias": (outputs,)}


def age_shapes():
    def reduction(name, before, after):
        expansion = {f"{name}/expansion_conv/filters": (1, 1, before, after), f"{name}/expansion_conv/bias": (after,)}
        return separable(f"{name}/separable_conv0", before, after) | separable(
            f"{name}/separable_conv1", after, after
        ) | expansion  # fmt: skip

    shapes = {"entry_flow/conv_in/filters": (3, 3, 3, 32), "entry_flow/conv_in/bias": (32,)}
    shapes |= reduction("entry_flow/reduction_block_0", 32, 64) | reduction("entry_flow/reduction_block_1", 64, 128)
    for block in range(2):
        for k in range(3):
            shapes |= separable(f"middle_flow/main_block_{block}/separable_conv{k}", 128, 128)
    shapes |= reduction("exit_flow/reduction_block", 128, 256) | separable("exit_flow/separable_conv", 256, 512)
    return shapes | {
        "fc/age/weights": (512, 1), "fc/age/bias": (1,), "fc/gender/weights": (512, 2), "fc/gender/bias": (2,),
    }  # fmt: skip


def test_a_manifest_is_read_with_its_scales(tmp_path):
    from photo_faces_parts.face_api import read_manifest

    tensors = random_tensors({"a": (2, 3), "b": (4,)})
    expected = write_manifest(tmp_path, "m", tensors, quantized=("a",))
    found = read_manifest(tmp_path, "m")
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=1e-6)
    assert np.abs(found["a"].numpy() - tensors["a"]).max() < 0.01


@pytest.mark.parametrize("fault", ["short", "long", "outside", "unknown kind", "no file", "no json"])
def test_a_manifest_that_is_not_whole_is_refused(tmp_path, fault):
    from photo_faces_parts.face_api import read_manifest

    write_manifest(tmp_path, "m", random_tensors({"a": (2, 3)}))
    manifest, data = tmp_path / "m-weights_manifest.json", tmp_path / "m.bin"
    if fault == "short":
        data.write_bytes(data.read_bytes()[:-1])
    elif fault == "long":
        data.write_bytes(data.read_bytes() + b"\0")
    elif fault == "outside":
        manifest.write_text(manifest.read_text().replace("m.bin", "../m.bin"))
    elif fault == "unknown kind":
        manifest.write_text(manifest.read_text().replace("float32", "complex64"))
    elif fault == "no file":
        data.unlink()
    else:
        manifest.write_text("{")
    with pytest.raises(SystemExit, match=r"m-weights_manifest\.json"):
        read_manifest(tmp_path, "m")


def test_separable_convolutions_pad_as_tensorflow_does():
    from photo_faces_parts.face_api import _Reader, _Separable

    weights = {k: torch.from_numpy(v) for k, v in random_tensors(separable("c", 2, 3)).items()}
    x = torch.randn(1, 2, 6, 6)
    got = _Separable(_Reader(weights), "c", stride=2)(x)
    depth, point = weights["c/depthwise_filter"], weights["c/pointwise_filter"]
    padded = np.pad(x[0].numpy(), ((0, 0), (0, 1), (0, 1)))  # of "same": one below and to the right
    for i in range(3):
        for j in range(3):
            seen = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            middle = (seen * depth[..., 0].permute(2, 0, 1).numpy()).sum((1, 2))
            want = middle @ point[0, 0].numpy() + weights["c/bias"].numpy()
            np.testing.assert_allclose(got[0, :, i, j].detach().numpy(), want, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shapes", "side", "outputs"),
    [
        ("face_recognition", recognition_shapes, 150, 128),
        ("age_gender", age_shapes, 112, 2),
        ("face_expression", lambda: dense_shapes(7), 112, 7),
        ("face_landmark_68", lambda: dense_shapes(136), 112, 136),
    ],
)
def test_networks_take_their_weights_all_of_them(tmp_path, name, shapes, side, outputs):
    from photo_faces_parts.face_api import load

    tensors = random_tensors(shapes())
    write_manifest(tmp_path, f"{name}_model", tensors, quantized=[k for k in tensors if k.endswith("filters")])
    faces = torch.rand(2, 3, side, side)
    out = load(tmp_path, name)(faces)
    assert out.shape == (2, outputs)
    assert not torch.allclose(out[0], out[1])
    write_manifest(tmp_path, f"{name}_model", tensors | {"more": np.zeros(1, np.float32)})
    with pytest.raises(SystemExit, match="another network"):
        load(tmp_path, name)


def test_crops_put_landmarks_where_the_network_wants_them():
    from photo_faces_parts import crops

    seen = crops.mobile_face_net(nn.Identity())
    for (x, y), (u, w) in zip(crops.POINTS, crops.MOBILE_FACE_NET, strict=True):
        squares = torch.zeros(1, 3, 256, 256)
        squares[:, :, int(y) - 3 : int(y) + 3, int(x) - 3 : int(x) + 3] = 1
        crop = seen.crop(squares)[0, 0]
        rows, columns = torch.arange(112) + 0.5, torch.arange(96) + 0.5
        assert (
            abs(float((crop.sum(1) * rows).sum() / crop.sum()) - w) < 2.5
        )  # no similarity takes all four there exactly
        assert abs(float((crop.sum(0) * columns).sum() / crop.sum()) - u) < 2.5
    # No similarity takes all four there exactly. The same square, larger: the same crop.
    squares = F.interpolate(torch.rand(1, 3, 16, 16), 256, mode="bicubic").clamp(0, 1)
    finer = F.interpolate(squares, 512, mode="bilinear")
    assert float((seen.crop(squares) - seen.crop(finer)).abs().mean()) < 0.01


def test_shares_of_variance_add_up():
    from photo_faces_parts.judges import shares

    z, v = torch.randn(40, 1), torch.randn(1, 30)
    only_z = shares(z.expand(40, 30))
    assert only_z["z"] == pytest.approx(1)
    assert only_z["v total"] == pytest.approx(0, abs=1e-6)
    mixed = shares(z / z.std() + v / v.std() + torch.randn(40, 30))
    assert mixed["z"] == pytest.approx(1 / 3, abs=0.1)
    assert mixed["z"] + mixed["v total"] == pytest.approx(1)


def test_pictures_are_made_once(tmp_path):
    from photo_faces_parts.generator import Kept

    made = []

    def decode(latents):
        made.append(len(latents))
        return np.full((len(latents), 3, 4, 4), 7, np.uint8)

    latents = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    assert Kept(decode, tmp_path)(latents[:2]).shape == (2, 3, 4, 4)
    assert (Kept(decode, tmp_path)(torch.from_numpy(latents)) == 7).all()
    assert made == [1, 1, 1]


def test_set_up_keeps_what_it_needs_and_refuses_what_was_changed(tmp_path):
    from photo_faces_parts import setup

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name in (
            "package/model/age_gender_model.bin",
            "package/LICENSE",
            "package/src/index.ts",
            "../evil_model.bin",
        ):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    setup.unpack_judges(stream.getvalue(), tmp_path / "judges")
    assert sorted(p.name for p in (tmp_path / "judges").iterdir()) == ["LICENSE", "age_gender_model.bin"]
    assert setup.checked(b"abc", "sha256", hashlib.sha256(b"abc").hexdigest(), "it") == b"abc"
    with pytest.raises(SystemExit, match="it was changed"):
        setup.checked(b"abd", "sha256", hashlib.sha256(b"abc").hexdigest(), "it")


class Tiny(nn.Module):
    """Has the layers that the example names."""

    def __init__(self):
        super().__init__()
        self.network = nn.Module()
        self.network.blocks = nn.Sequential(nn.AvgPool2d(4), *[nn.Conv2d(3, 3, 1) for _ in range(14)])
        self.network.linear1 = self.network.fc = nn.Linear(48, 6)

    def forward(self, x):
        return self.network.linear1(self.network.blocks(x).flatten(1))


def test_the_example_runs_with_a_tiny_generator_and_goes_on(tmp_path, monkeypatch):
    import photo_faces

    monkeypatch.setattr(photo_faces, "LAYERS", {"embedding": "network.linear1"})
    torch.manual_seed(0)
    basis = torch.randn(8, 3 * 16 * 16) / 6
    made = []

    def decode(latents):
        made.append(len(latents))
        flat = torch.sigmoid(torch.from_numpy(latents) @ basis) * 255
        return flat.round().to(torch.uint8).unflatten(1, (3, 16, 16)).numpy()

    class Judge:
        names = ("brightness",)
        quality: dict[str, float] = {}  # noqa: RUF012

        def __call__(self, pictures):
            return pictures.float().mean((1, 2, 3))[:, None]

    network, other = Tiny().eval(), Tiny().eval()
    parts = photo_faces.Parts(decode, torch.randn(340, 8), network, other, judges=Judge())
    # Pictures like no draw: noise, where draws are smooth sums of a few patterns.
    (tmp_path / "animals").mkdir()
    for k in range(20):
        noise = np.random.default_rng(k).integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "animals" / f"{k}.png")
    given = ["run", "--parts", str(tmp_path), "--out", str(tmp_path / "out"), "--smoke"]
    given += ["--animals", str(tmp_path / "animals")]
    found = photo_faces.main(given, parts)
    once = len(made)
    first = found["layers"]["MobileFaceNet, embedding"]
    # 6 of 8 dimensions are given by z, by way of a sigmoid: the linear t does most of it, and asking again helps.
    assert first["by round"][1]["cosine"] >= first["by round"][0]["cosine"] > 0.8
    assert 0 < first["by round"][0]["spread"]["latents"] < 0.8
    assert (tmp_path / "out" / "MobileFaceNet-embedding.jpg").exists()
    assert first["shift"]["draws kept aside"]["flagged"] <= 0.05
    assert first["shift"]["animals"]["flagged"] >= 0.9
    assert first["shift"]["animals"]["distance"] > 1.2 > first["shift"]["draws kept aside"]["distance"]
    assert "| animals |" in (tmp_path / "out" / "photo_faces.md").read_text()
    assert (tmp_path / "out" / "shift.jpg").exists()
    assert list(found["layers"]) == ["MobileFaceNet, embedding", "face-api, embedding"]
    again = photo_faces.main(given, parts)
    assert len(made) == once
    assert again["layers"] == found["layers"]


def test_the_example_says_what_is_missing(tmp_path, capsys):
    import photo_faces
    from photo_faces_parts.generator import FaceGenerator

    with pytest.raises(SystemExit):
        photo_faces.main(["run", "--parts", str(tmp_path)])
    assert "--weights" in capsys.readouterr().err
    pytest.importorskip("openvino")
    with pytest.raises(SystemExit, match="setup"):
        FaceGenerator(tmp_path)


PARTS = os.environ.get("POSTHOC_INN_PHOTO_PARTS", "")
REAL = os.environ.get("POSTHOC_INN_DATA_DIR", "")


@pytest.mark.slow
@pytest.mark.skipif(not (PARTS and REAL), reason="POSTHOC_INN_PHOTO_PARTS names no directory that `setup` wrote")
def test_the_example_runs_for_real(tmp_path):
    pytest.importorskip("openvino")
    import photo_faces

    faces = next(p.parent for p in Path(REAL).glob("*/attributes.csv"))
    weights = next(Path(REAL).glob("weights/mobilefacenet*/*.ckpt"))
    given = ["run", "--parts", PARTS, "--weights", str(weights), "--data-dir", str(faces), "--out", str(tmp_path)]
    found = photo_faces.main([*given, "--smoke", "--layers", "MobileFaceNet, embedding"])
    first = found["layers"]["MobileFaceNet, embedding"]
    assert first["by round"][1]["cosine"] > first["by round"][0]["cosine"] > 0.2
    assert found["photographs"]["other"]["one person accepted"] > 0.5
