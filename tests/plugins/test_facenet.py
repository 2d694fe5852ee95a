"""The FaceNet plugin: the network and its weights, the names of the paper's table, and the alignment of faces."""

import json
import os
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageDraw

from posthoc_inn.errors import ConfigError, DataError, PosthocInnWarning, UnknownNameError
from posthoc_inn.images import apply_spec
from posthoc_inn.plugins import PluginManager
from posthoc_inn.weights import seeded_init

facenet_pytorch = pytest.importorskip("facenet_pytorch")
plugin = pytest.importorskip("posthoc_inn_facenet")

from posthoc_inn_facenet import backbone  # noqa: E402
from posthoc_inn_facenet.align import RECORD, align_folder, aligned  # noqa: E402
from posthoc_inn_facenet.command import command  # noqa: E402
from posthoc_inn_facenet.faces import FaceAligner, to_picture  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def manager():
    manager = PluginManager([])
    manager.load()
    manager.register(plugin, distribution="posthoc-inn-facenet")
    return manager


@pytest.fixture(scope="module")
def network(manager):
    return manager.build_backbone("facenet")


def drawn_face(side=120, at=(0, 0), canvas=None):
    """Draw what MTCNN takes for a face: hair, eyes, nose and mouth."""
    canvas = canvas or Image.new("RGB", (side, side), (90, 110, 130))
    draw, scale = ImageDraw.Draw(canvas), side / 160

    def put(shape, box, color):
        getattr(draw, shape)([at[i % 2] + value * scale for i, value in enumerate(box)], fill=color)

    put("ellipse", (30, 8, 130, 120), (60, 40, 30))
    put("ellipse", (40, 25, 120, 145), (224, 172, 140))
    for x in (60, 100):
        put("ellipse", (x - 11, 66, x + 11, 80), (240, 240, 240))
        put("ellipse", (x - 6, 66, x + 6, 80), (40, 25, 20))
        put("rectangle", (x - 13, 55, x + 13, 60), (60, 40, 30))
    put("ellipse", (72, 92, 88, 106), (190, 135, 105))
    put("ellipse", (62, 114, 98, 128), (170, 70, 70))
    put("rectangle", (62, 120, 98, 121), (90, 30, 30))
    return canvas


def two_faces():
    canvas = Image.new("RGB", (240, 130), (90, 110, 130))
    return drawn_face(120, (110, 5), drawn_face(80, (5, 20), canvas))


@pytest.fixture
def photos(tmp_path):
    """One face, two faces, none, a file that is no picture, and one that is too small."""
    folder = tmp_path / "photos"
    (folder / "family").mkdir(parents=True)
    drawn_face().save(folder / "one.png")
    two_faces().save(folder / "family" / "two.png")
    Image.new("RGB", (60, 60), "white").save(folder / "wall.png")
    Image.new("RGB", (8, 8), "white").save(folder / "tiny.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def names_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))


# ---- the network


def test_images_reach_the_network_as_facenet_pytorch_prepares_them(manager):
    face = torch.randint(0, 256, (1, 3, 160, 160), generator=torch.Generator().manual_seed(0))
    spec = manager.image_spec("facenet")
    own = facenet_pytorch.fixed_image_standardization(face.float())
    torch.testing.assert_close(apply_spec(face / 255, spec), own, rtol=0, atol=1e-6)
    assert spec.size == (160, 160)


def test_its_output_is_an_embedding_and_every_row_of_the_papers_table_a_layer(manager, network):
    from posthoc_inn.features import list_layers

    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embedding = network(images)
    assert embedding.shape == (2, 512)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
    told = {info.name: info for info in list_layers(network, images, check_cuts=False)}
    rows = manager.backbones.get("facenet").metadata["layers"]
    shapes = {name: "x".join(map(str, told[name].shape)) for name in rows if name != "output"}
    # What the paper's table says for images of 128 px.
    assert shapes["conv2d_4b"] == shapes["repeat_1"] == "256x13x13"
    assert shapes["mixed_6a"] == shapes["repeat_2"] == "896x6x6"
    assert (shapes["conv2d_2b"], shapes["mixed_7a"], shapes["last_bn"]) == ("64x61x61", "1792x2x2", "512")
    for line in (ROOT / "plugins/facenet/README.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 4 and cells[1].strip("`") in shapes:
            assert cells[3] == shapes.pop(cells[1].strip("`"))
    assert not shapes


def test_its_prediction_is_recognised_as_an_embedding(network):
    from posthoc_inn.features import LayerExtractor
    from posthoc_inn.features.outputs import recognise

    images = torch.rand(4, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    extractor = LayerExtractor(network, "avgpool_1a")
    assert extractor.features(images).shape == (4, 1792, 1, 1)
    found = recognise(extractor.predict(images), head=extractor.probe(images).head)
    assert (found.kind, found.is_sure) == ("embedding", True)


def test_the_layers_command_shows_the_papers_names(manager, monkeypatch):
    from posthoc_inn.cli.layers import command as layers

    monkeypatch.setattr("posthoc_inn.plugins.get_plugin_manager", lambda: manager)
    asked = CliRunner().invoke(layers, ["--backbone", "facenet", "--input-size", "80", "--no-cuts", "--json"])
    told = {layer["name"]: layer["note"] for layer in json.loads(asked.stdout)["layers"]}
    assert told["mixed_6a"].startswith("MSC tab. S12, investigated: Mixed down (the first)")
    assert told["output"].startswith("MSC tab. S12, investigated: identity embedding")
    assert told["conv2d_1a"] == ""


def test_random_weights_are_the_same_at_every_call(manager, network):
    before = torch.get_rng_state()
    again = manager.build_backbone("facenet")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    assert not again.training


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file as facenet-pytorch publishes them, the classifier that training needed included; and what is in it."""
    folder = tmp_path_factory.mktemp("torch") / "checkpoints"
    folder.mkdir()
    with seeded_init(3):
        state = facenet_pytorch.InceptionResnetV1(classify=True, num_classes=10575).state_dict()
    torch.save(state, folder / "20180408-102900-casia-webface.pt")
    return folder / "20180408-102900-casia-webface.pt", state


def test_a_local_file_with_a_classifier_gives_the_embedding(manager, published):
    path, state = published
    built = manager.build_backbone("facenet", weights=str(path)).state_dict()
    assert set(state) - set(built) == {"logits.weight", "logits.bias"}
    assert all(torch.equal(state[key], value) for key, value in built.items())
    assert manager.build_backbone("facenet", weights=str(path), num_classes=10575).logits.out_features == 10575
    with pytest.raises(DataError, match=r"logits\.weight is \(10575, 512\) in the file, \(5, 512\) in the model"):
        manager.build_backbone("facenet", weights=str(path), num_classes=5)


def test_published_weights_come_from_torchs_hub_directory_where_they_are(manager, published, monkeypatch):
    path, state = published
    monkeypatch.setenv("TORCH_HOME", str(path.parents[1]))
    monkeypatch.setattr("urllib.request.urlopen", None)
    built = manager.build_backbone("facenet", weights="casia-webface")
    assert torch.equal(built.last_linear.weight, state["last_linear.weight"])
    assert not hasattr(built, "logits")


def test_without_a_network_published_weights_fail_in_one_line_and_only_when_named(manager, tmp_path, monkeypatch):
    from facenet_pytorch.models import inception_resnet_v1

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked = []

    def offline(url, target):
        asked.append(url)
        raise OSError("no\nnetwork")

    monkeypatch.setattr(inception_resnet_v1, "download_url_to_file", offline)
    manager.build_backbone("facenet")
    assert asked == []
    with pytest.raises(DataError, match=r"vggface2 could not be had \(OSError: no network\).*pass it: --weights FILE"):
        manager.build_backbone("facenet", weights="vggface2")
    assert len(asked) == 1


def test_other_names_of_weights_are_refused(manager):
    with pytest.raises(UnknownNameError, match=r"'vggface2' and 'casia-webface'.* or a local file, got 'DEFAULT'"):
        manager.build_backbone("facenet", weights="DEFAULT")
    assert backbone.PUBLISHED == ("vggface2", "casia-webface")


# ---- the alignment


def test_the_face_is_cut_out_as_facenet_pytorch_does_it():
    picture = two_faces()
    face, count = FaceAligner(size=96, margin=10).cut(picture)
    own = facenet_pytorch.MTCNN(image_size=96, margin=10, post_process=False)(picture)
    assert count == 2
    assert np.array_equal(np.asarray(face), own.permute(1, 2, 0).byte().numpy())
    # The largest is the one on the right.
    assert FaceAligner().boxes(picture)[0][0] > 110


def test_the_transform_is_deterministic_and_takes_pictures_and_tensors():
    aligner, before = FaceAligner(size=64), torch.get_rng_state()
    from_picture = aligner(drawn_face())
    as_tensor = torch.from_numpy(np.asarray(drawn_face()).copy()).permute(2, 0, 1) / 255
    assert from_picture.shape == (3, 64, 64)
    assert torch.equal(aligner(as_tensor), from_picture)
    assert torch.equal(FaceAligner(size=64)(as_tensor), from_picture)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.ones(3, 50, 60), "no face in a photograph of 60x50 pixels"),
        (torch.ones(3, 8, 8), "no face in a photograph of 8x8 pixels"),
        (torch.full((3, 50, 60), 255.0), r"is in \[0, 1\], got values from 255 to 255"),
        (torch.full((3, 50, 60), float("nan")), r"is in \[0, 1\], got values from nan"),
        (torch.zeros(3, 50, 60, dtype=torch.uint8), "float tensor"),
        (torch.ones(2, 3, 50, 60), "float tensor"),
    ],
)
def test_what_has_no_face_or_is_no_photograph_is_an_error_of_the_transform(image, message):
    with pytest.raises(DataError, match=message):
        FaceAligner()(image)


def test_wrong_settings_are_told_together():
    with pytest.raises(ConfigError, match=r"size must be .* 3; margin must be .* -1; min_face must be .* got 1"):
        FaceAligner(3, -1, 1)
    with pytest.raises(ConfigError, match="less than the size, got 64"):
        FaceAligner(64, 64)


def test_a_folder_is_aligned_and_what_is_left_out_is_counted_by_reason(photos, tmp_path):
    result = align_folder(photos, tmp_path / "faces", size=48)
    assert result.faces == {"one.png": "one.png", "family/two.png": "family/two.png"}
    assert result.left_out == {"no face": ["tiny.png", "wall.png"], "unreadable": ["broken.jpg"]}
    assert result.several == ["family/two.png"]
    assert names_below(tmp_path / "faces") == ["family/two.png", "one.png"]
    with Image.open(tmp_path / "faces" / "one.png") as face:
        assert (face.size, face.mode) == ((48, 48), "RGB")
    told = result.told()
    assert "Of 5 photographs 2 gave a face." in told
    assert "Left out: 3 (no face: 2, unreadable: 1)." in told


def test_a_second_call_does_only_what_is_missing_or_has_changed(photos, tmp_path, monkeypatch):
    out = tmp_path / "faces"
    align_folder(photos, out, size=48)
    first = (out / "one.png").read_bytes()
    # As after a kill: a face without its line, and half a line.
    lines = (out / RECORD).read_text().splitlines(keepends=True)
    (out / RECORD).write_text("".join(line for line in lines if "one.png" not in line) + '{"photogra')
    (out / "family" / "two.png").unlink()
    looked = []
    cut = FaceAligner.cut
    monkeypatch.setattr(FaceAligner, "cut", lambda self, image: looked.append(image.size) or cut(self, image))
    again = align_folder(photos, out, size=48)
    assert sorted(looked) == [(120, 120), (240, 130)]
    assert (again.done_before, len(again.faces), again.left_out["no face"]) == (3, 2, ["tiny.png", "wall.png"])
    assert (out / "one.png").read_bytes() == first
    shutil.copy(photos / "wall.png", photos / "one.png")
    (photos / "family" / "two.png").unlink()
    third = align_folder(photos, out, size=48)
    assert (third.changed, third.gone, third.faces) == (["one.png"], ["family/two.png"], {})
    assert not (out / "one.png").exists(), "the face of what the photograph was must not stand for it"


def test_photographs_that_differ_in_their_ending_alone_get_a_face_each(photos, tmp_path):
    out = tmp_path / "faces"
    align_folder(photos, out, size=48)
    drawn_face(100).save(photos / "one.jpg")
    assert align_folder(photos, out, size=48).faces["one.jpg"] == "one.jpg.png"
    fresh = align_folder(photos, tmp_path / "fresh", size=48)
    assert {fresh.faces[n] for n in ("one.jpg", "one.png")} == {"one.jpg.png", "one.png.png"}


def test_nothing_is_overwritten_silently(photos, tmp_path):
    out = tmp_path / "faces"
    align_folder(photos, out, size=48)
    with pytest.raises(DataError, match=r"made with size 48, margin 0.* not with size 64.*--overwrite"):
        align_folder(photos, out, size=64)
    (out / "mine.txt").write_text("kept")
    drawn_face(90).save(photos / "new.png")
    (out / "new.png").write_bytes(b"somebody's")
    result = align_folder(photos, out, size=48)
    assert result.left_out["another file has its name"] == ["new.png"]
    assert (out / "new.png").read_bytes() == b"somebody's"
    assert len(align_folder(photos, out, size=64, overwrite=True).faces) == 2
    assert (out / "mine.txt").read_text() == "kept"
    with Image.open(out / "one.png") as face:
        assert face.size == (64, 64)


def test_directories_that_are_not_of_an_alignment_are_refused(photos, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=f"other holds other files, and no {RECORD}"):
        align_folder(photos, other)
    with pytest.raises(DataError, match="among the photographs"):
        align_folder(photos, photos)
    with pytest.raises(DataError, match="is a file"):
        align_folder(photos, other / "notes.txt")
    (other / RECORD).write_text('{"size": 160}\n{"photograph": "a", "sha256": "1", "face": "../../a.png"}\n')
    with pytest.raises(DataError, match=r"cannot be read .*no alignment wrote"):
        align_folder(photos, other, overwrite=True)
    with pytest.raises(DataError, match="is no folder"):
        align_folder(tmp_path / "missing", tmp_path / "faces")


def test_faces_may_lie_below_the_photographs(photos):
    out = photos / "faces"
    assert align_folder(photos, out, size=48).photographs == 5
    assert align_folder(photos, out, size=48).photographs == 5


def test_the_data_set_has_the_faces_alone_and_says_what_it_lacks(photos, tmp_path):
    with pytest.warns(PosthocInnWarning, match="Left out: 3"):
        data = aligned(photos, tmp_path / "faces", size=48)
    Image.new("RGB", (48, 48)).save(tmp_path / "faces" / "zzz.png")
    assert [f.name for f in data.files] == ["two.png", "one.png"]
    assert data[1].shape == (3, 48, 48)
    torch.testing.assert_close(data[1], FaceAligner(48)(drawn_face()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PosthocInnWarning)
        assert len(aligned(photos, tmp_path / "faces", size=48)) == 2


def test_the_command_tells_what_it_did_and_goes_on(photos, tmp_path):
    out = tmp_path / "faces"
    asked = CliRunner().invoke(command, [str(photos), str(out), "--size", "48", "--json"])
    assert asked.exit_code == 0
    told = json.loads(asked.stdout)
    assert (told["faces"], told["left_out"]["unreadable"], told["several"]) == (2, ["broken.jpg"], ["family/two.png"])
    again = CliRunner().invoke(command, [str(photos), str(out), "--size", "48", "--quiet"])
    assert "Done before: 5." in again.stdout
    assert "no face: tiny.png, wall.png" in again.stdout
    for name in ("one.png", "family/two.png"):
        (photos / name).unlink()
    none = CliRunner().invoke(command, [str(photos), str(out), "--size", "48", "--quiet"])
    assert isinstance(none.exception, DataError)
    assert "No face was found below" in str(none.exception)


def test_a_photograph_the_detector_stumbles_over_is_left_out(photos, tmp_path, monkeypatch):
    def fail(self, image):
        raise RuntimeError("torch.cat(): expected a non-empty list of Tensors")

    monkeypatch.setattr(facenet_pytorch.MTCNN, "detect", fail)
    assert align_folder(photos, tmp_path / "faces").left_out["the detector failed"] == [
        "family/two.png",
        "one.png",
        "wall.png",
    ]


def test_a_tensor_becomes_the_picture_it_shows():
    grey = torch.tensor([[[0.0, 1.0], [0.5, 0.25]]])
    assert np.asarray(to_picture(grey))[..., 2].tolist() == [[0, 255], [128, 64]]


REAL = Path(os.environ.get("POSTHOC_INN_DATA_DIR", "") or "none")
FACES = next((p for p in (REAL / "celeba10k" / "images.zip", REAL / "images.zip") if p.is_file()), None)


@pytest.mark.skipif(FACES is None, reason="POSTHOC_INN_DATA_DIR has no celeba10k/images.zip")
def test_faces_are_found_in_photographs(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    with zipfile.ZipFile(FACES) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))[:40]
        for name in names:
            (photos / Path(name).name).write_bytes(archive.read(name))
    result = align_folder(photos, tmp_path / "faces")
    assert len(result.faces) >= 38
