"""z of one image with v of another: cell by cell, frame by frame, and to and from files."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from layer_parts import NORMALIZED, classifier, linear_autoencoder, pictures, pipeline
from PIL import Image
from torch import nn

from posthoc_inn import untouched
from posthoc_inn.analysis.frames import read_frames, save_animation
from posthoc_inn.analysis.recombination import recombine, recombine_frames
from posthoc_inn.errors import ConfigError, DataError, ShapeError


def slow_cell(parts, z_image, v_image):
    """D(t⁻¹(v of one given z of the other)) for a single pair, module by module."""
    with torch.no_grad():
        z, own = (parts.flow.context(parts.extractor.features((x[None] - 0.5) / 0.5)) for x in (z_image, v_image))
        v, _ = parts.flow(parts.autoencoder.encode(v_image[None])[0], own)
        return parts.autoencoder.decode(parts.flow.inverse(v, z))[0]


def test_every_cell_joins_z_of_its_row_with_v_of_its_column():
    parts, rows, columns = pipeline(), pictures(4), pictures(3, seed=1)
    found = recombine(parts, rows, columns)
    assert found.pictures.shape == (4, 3, 3, 8, 8)
    model = parts.extractor.model
    for i in range(4):
        for j in range(3):
            expected = slow_cell(parts, rows[i], columns[j])
            assert torch.allclose(found.pictures[i, j], expected, atol=1e-5)
            with torch.no_grad():
                assert found.predictions[i][j] == int(model((expected[None] - 0.5) / 0.5).argmax())
    assert torch.equal(found.z_images, rows)
    assert torch.equal(found.v_images, columns)
    assert not torch.allclose(found.pictures[0, 0], found.pictures[1, 0], atol=1e-3)
    assert not torch.allclose(found.pictures[0, 0], found.pictures[0, 1], atol=1e-3)


def test_agreements_are_counted_over_cells():
    parts = pipeline()
    found = recombine(parts, pictures(9), pictures(7, seed=1))
    cells, z, v = np.array(found.predictions), np.array(found.z_predictions), np.array(found.v_predictions)
    same = [[cells[i, j] == z[i] for j in range(7)] for i in range(9)]
    assert found.agreement == pytest.approx(np.mean(same))
    assert found.agreement_error == pytest.approx(np.std(np.mean(same, axis=1), ddof=1) / 3)
    pairs = [(i, j) for i in range(9) for j in range(7) if z[i] != v[j]]
    assert found.contested == len(pairs) > 0
    assert found.follows_z == pytest.approx(np.mean([cells[i, j] == z[i] for i, j in pairs]))
    assert found.follows_v == pytest.approx(np.mean([cells[i, j] == v[j] for i, j in pairs]))


def test_similarities_leave_out_an_image_with_itself():
    parts, x = pipeline(), pictures(4)
    found = recombine(parts, x)
    to_z, to_v = [], []
    z = parts.features(x).flatten(1).numpy()
    for i in range(4):
        for j in range(4):
            own = parts.ask_model(found.pictures[i, j][None])[0].flatten().numpy()
            if i != j:
                cosine = [own @ other / np.linalg.norm(own) / np.linalg.norm(other) for other in (z[i], z[j])]
                to_z.append(cosine[0])
                to_v.append(cosine[1])
    assert found.similarity_to_z == pytest.approx(np.mean(to_z), abs=1e-4)
    assert found.similarity_to_v == pytest.approx(np.mean(to_v), abs=1e-4)


def test_an_image_with_itself_is_its_reconstruction():
    parts, x = pipeline(), pictures(5)
    found = recombine(parts, x)
    own = parts.decode(parts.encode(x)[0])
    assert torch.allclose(found.pictures[torch.arange(5), torch.arange(5)], own, atol=1e-5)


def test_a_t_that_ignores_z_takes_everything_from_the_column():
    found = recombine(pipeline(strength=0.0), pictures(3), pictures(4, seed=1))
    assert torch.allclose(found.pictures, found.pictures[:1].expand_as(found.pictures), atol=1e-6)


def test_rows_and_columns_may_be_of_different_sizes():
    found = recombine(pipeline(), pictures(2, side=8), pictures(3, side=12, seed=1))
    assert found.pictures.shape == (2, 3, 3, 8, 8)
    assert math.isfinite(found.similarity_to_z)


def test_a_model_without_classes_gets_similarities_alone():
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(3, 4, 3, 2)

        def forward(self, x):
            return self.body(x)

    found = recombine(pipeline("body", model=Body()), pictures(3))
    assert math.isnan(found.agreement)
    assert math.isnan(found.follows_z)
    assert math.isfinite(found.similarity_to_z)
    assert found.predictions == found.z_predictions == ()
    assert "nan" not in found.caption
    assert found.figure().axes
    assert json.loads(json.dumps(found.to_dict()))["agreement"] is None


def test_results_are_plain_data_and_a_figure():
    found = recombine(pipeline(), pictures(5), pictures(4, seed=1), class_names=["cat", "dog", "owl", "fox"])
    plain = json.loads(json.dumps(found.to_dict()))
    assert len(plain["predictions"]) == 5
    assert "pictures" not in plain
    assert f"{100 * found.agreement:.0f} %" in found.caption
    ax = found.figure(rows=2, columns=3).axes[0]
    # The two images on the left, the three on top, and the cells; the corner stays empty.
    assert len(ax.images) == 2 + 3 + 6
    texts = [t.get_text() for t in ax.texts]
    assert texts.count("z of") == 2
    assert sum(t in ("cat", "dog", "owl", "fox") for t in texts) == 11
    red = sum(found.predictions[i][j] != found.z_predictions[i] for i in range(2) for j in range(3))
    assert sum(t.get_color() == "#c23b3b" for t in ax.texts) == red


def test_the_model_is_left_as_it_was():
    model = classifier()
    parts = pipeline(model=model)
    with untouched(model):
        recombine(parts, pictures(2))
        list(recombine_frames(parts, pictures(1), pictures(2)))


@pytest.mark.parametrize("fixed", ["v", "z"])
def test_frames_are_the_cells_of_a_recombination_one_by_one(fixed):
    parts, image, frames = pipeline(), pictures(1)[0], pictures(6, seed=1)
    whole = recombine(parts, frames, image[None]) if fixed == "v" else recombine(parts, image[None], frames)
    expected = whole.pictures.flatten(0, 1)
    # Single images and batches may follow each other.
    given = [frames[0], frames[1:4], frames[4], frames[5:6]]
    found = list(recombine_frames(parts, image, given, fixed=fixed))
    assert torch.allclose(torch.stack(found), expected, atol=1e-5)


def test_frames_are_taken_one_at_a_time():
    parts, taken = pipeline(), []

    def endless():
        while True:
            taken.append(len(taken))
            yield pictures(1, seed=len(taken))[0]

    found = recombine_frames(parts, pictures(1), endless())
    assert taken == []
    for _ in range(3):
        next(found)
    assert taken == [0, 1, 2]


def test_frames_as_files_hold_them_reach_a_model_that_takes_normalised_tensors():
    parts = pipeline(normalization=NORMALIZED, model=classifier(), autoencoder=linear_autoencoder())
    image, frames = pictures(1), pictures(3, seed=1)
    expected = list(recombine_frames(parts, NORMALIZED.apply(image), [NORMALIZED.apply(frames)]))
    found = list(recombine_frames(parts, image, [frames], canonical=True))
    assert torch.allclose(torch.stack(found), torch.stack(expected), atol=1e-5)


def test_bad_arguments_are_refused_at_once_and_bad_frames_at_their_turn():
    parts = pipeline()
    with pytest.raises(ConfigError, match="fixed must be 'v' or 'z', got 'w'"):
        recombine_frames(parts, pictures(1), [], fixed="w")
    with pytest.raises(ShapeError, match=r"one image \(C, H, W\), got \(2, 3, 8, 8\)"):
        recombine_frames(parts, pictures(2), [])
    with pytest.raises(DataError, match=r"must lie in \[0, 1\]"):
        recombine_frames(parts, pictures(1) * 9, [])
    found = recombine_frames(parts, pictures(1), [pictures(1), pictures(1) - 1])
    next(found)
    with pytest.raises(DataError, match=r"must lie in \[0, 1\]"):
        next(found)
    with pytest.raises(DataError, match=r"must lie in \[0, 1\]"):
        recombine(parts, pictures(2) * 2)
    with pytest.raises(DataError, match="no image"):
        recombine(parts, pictures(2), pictures(0))
    with pytest.raises(ShapeError, match="Add the batch"):
        recombine(parts, pictures(2)[0])


# ---- files


def flat_pictures(n, *, side=6):
    """Pictures of one colour each, of whole levels, all different."""
    levels = torch.tensor([[(37 * k) % 256, (91 * k + 5) % 256, (11 * k) % 256] for k in range(n)]) / 255
    return levels[:, :, None, None].expand(n, 3, side, side).contiguous()


@pytest.mark.parametrize(
    ("suffix", "fps", "milliseconds"),
    [(".gif", 12, 80), (".gif", 27, 40), (".gif", 50, 20), (".gif", 0.01, 100_000), (".webp", 8, 125)],
)
def test_an_animation_holds_the_pictures_at_their_speed_and_loops(tmp_path, suffix, fps, milliseconds):
    path, given = tmp_path / f"a{suffix}", flat_pictures(9)
    assert save_animation((p for p in given), path, fps) == 9
    with Image.open(path) as written:
        assert written.n_frames == 9
        assert written.info["loop"] == 0
        written.seek(4)
        written.load()
        assert written.info["duration"] == milliseconds
    found = torch.stack(list(read_frames(path)))
    assert torch.allclose(found, given, atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_one_picture_and_grey_ones_can_be_written(tmp_path):
    grey = torch.linspace(0, 0.99, 16).view(1, 4, 4)
    assert save_animation([grey], tmp_path / "a.gif", 1) == 1
    (found,) = read_frames(tmp_path / "a.gif", channels=1)
    assert found.shape == (1, 4, 4)
    # Rounded to the nearest of 255 levels.
    assert float((found - grey).abs().max()) <= 0.5 / 255 + 1e-6


def test_pictures_are_taken_as_they_are_written(tmp_path):
    taken = []

    def given():
        for k, picture in enumerate(flat_pictures(5)):
            taken.append(k)
            yield picture

    save_animation(given(), tmp_path / "a.gif")
    assert taken == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_what_was_there_stays_when_a_picture_fails(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    save_animation(flat_pictures(2), path)
    before = path.read_bytes()

    def broken():
        yield from flat_pictures(3)
        raise RuntimeError("the camera is gone")

    with pytest.raises(RuntimeError, match="camera"):
        save_animation(broken(), path)
    assert path.read_bytes() == before
    with pytest.raises(ShapeError, match=r"Picture 1 has the shape \(3, 5, 5\), the first \(3, 6, 6\)"):
        save_animation([flat_pictures(1)[0], flat_pictures(1, side=5)[0]], path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "fps", "given", "error", "message"),
    [
        ("a.mp4", 12, flat_pictures(2), ConfigError, r"as .gif or .webp, got 'a.mp4'"),
        ("a.png", 12, flat_pictures(2), ConfigError, r"as .gif or .webp"),
        ("a.gif", 60, flat_pictures(2), ConfigError, r"fps must be from 0.01 to 50 for GIF, got 60"),
        ("a.gif", 0, flat_pictures(2), ConfigError, r"fps must be from 0.01"),
        ("a.gif", 12, [], DataError, "no picture"),
        ("a.gif", 12, [torch.zeros(6, 6)], ShapeError, r"pictures must have the shape"),
        ("a.gif", 12, [torch.zeros(3, 6, 6, dtype=torch.uint8)], ShapeError, "floating-point"),
        ("a.webp", float("nan"), flat_pictures(2), ConfigError, "fps must be from"),
        ("no/such/folder/a.gif", 12, flat_pictures(2), DataError, "cannot be written"),
    ],
)
def test_animations_that_cannot_be_written_are_refused(tmp_path, name, fps, given, error, message):
    with pytest.raises(error, match=message):
        save_animation(given, tmp_path / name, fps)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_images_is_read_in_order_one_at_a_time(tmp_path):
    given = flat_pictures(3)
    for k, picture in enumerate(given):
        pixels = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"frame-{k:03d}.png")
    assert torch.allclose(torch.stack(list(read_frames(tmp_path))), given, atol=1e-6)
    (tmp_path / "frame-001.png").write_bytes(b"nonsense")
    frames = read_frames(tmp_path)
    next(frames)
    with pytest.raises(DataError, match=r"frame-001.png is not an image"):
        next(frames)


def test_files_that_are_no_animation_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none.gif does not exist"):
        read_frames(tmp_path / "none.gif")
    (tmp_path / "film.mp4").write_bytes(b"x")
    with pytest.raises(DataError, match="take a film apart into a folder of images"):
        read_frames(tmp_path / "film.mp4")
    (tmp_path / "bad.gif").write_bytes(b"GIF89a nonsense")
    with pytest.raises(DataError, match=r"bad.gif is damaged or no image"):
        list(read_frames(tmp_path / "bad.gif"))
    save_animation(flat_pictures(4), tmp_path / "a.gif")
    cut = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(DataError, match=r"cut.gif is damaged"):
        list(read_frames(tmp_path / "cut.gif"))
    with pytest.raises(DataError, match="6x6 pixels, more than the limit of 20"):
        list(read_frames(tmp_path / "a.gif", max_pixels=20))
    with pytest.raises(ConfigError, match="channels must be 1 or 3, got 4"):
        read_frames(tmp_path / "a.gif", channels=4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image in"):
        read_frames(tmp_path / "empty")


def test_transparent_and_differing_frames_come_out_whole(tmp_path):
    # Pillow stores only what differs from frame to frame: reading must put it back together.
    base = flat_pictures(1, side=10)[0].repeat(3, 1, 1, 1)
    for k in range(3):
        base[k, :, 2 * k : 2 * k + 2, 3:5] = 1.0
    save_animation(base, tmp_path / "a.gif")
    assert torch.allclose(torch.stack(list(read_frames(tmp_path / "a.gif"))), base, atol=1e-6)
