"""Pairs from folders: which there are, how they are numbered, and what is said of folders that are wrong."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from posthoc_inn.concepts.folders import FolderPairs
from posthoc_inn.errors import ConfigError, DataError
from posthoc_inn.protocols import ConceptSource


def write(root, **folders):
    """Write grey images, each of another shade: write(root, pose=("1", "2")) gives pose/a and pose/b two each."""
    shade = 0
    for folder, names in folders.items():
        for side in "ab":
            (root / folder.replace("_", "-") / side).mkdir(parents=True)
            for name in names:
                shade += 10
                Image.new("L", (12, 10), shade).save(root / folder.replace("_", "-") / side / f"{name}.png")
    return root


@pytest.fixture
def root(tmp_path):
    return write(tmp_path, pose=("2", "1"), light=("x",), not_light=("p", "q", "r"))


def test_pairs_and_masks_are_those_of_the_folders(root):
    made = FolderPairs(root, size=8, offset=100)
    assert made.names == ("light", "pose")
    assert [str(f.relative_to(root)) for f in made.files] == [
        *("light/a/x.png", "light/b/x.png"),
        *("not-light/a/p.png", "not-light/a/q.png", "not-light/a/r.png"),
        *("not-light/b/p.png", "not-light/b/q.png", "not-light/b/r.png"),
        *("pose/a/1.png", "pose/a/2.png", "pose/b/1.png", "pose/b/2.png"),
    ]
    a, b, shared = made.pairs(900, seed=0)
    assert shared.dtype == torch.bool
    found = {(i, j, tuple(s)) for i, j, s in zip(a.tolist(), b.tolist(), shared.tolist(), strict=True)}
    assert found == {
        (100, 101, (False, True, False)),
        *((102 + k, 105 + k, (True, False, True)) for k in range(3)),
        *((108 + k, 110 + k, (False, False, True)) for k in range(2)),
    }
    # Folders are drawn equally often, whatever they hold.
    assert 240 < (a == 100).sum() < 360
    assert 240 < shared[:, 0].sum() < 360


def test_images_are_read_when_asked_for_at_the_size_asked_for(root):
    made = FolderPairs(root, size=8, channels=3, offset=0)
    assert len(made.extra) == 12
    assert made.extra[0].shape == (3, 8, 8)
    shades = [round(float(image.mean()) * 255) for image in made.extra]
    # As written: pose 2, 1 then light, not-light; a before b.
    assert shades == [50, 60, 70, 80, 90, 100, 110, 120, 20, 10, 40, 30]
    assert FolderPairs(root, size=5, channels=1, offset=0).extra[3].shape == (1, 5, 5)
    (root / "light" / "a" / "x.png").write_text("no image any more")
    with pytest.raises(DataError, match=r"x\.png is not an image"):
        made.extra[0]


def test_numbers_go_on_from_the_data(root):
    one, other = FolderPairs(root, size=8, data=range(7)), FolderPairs(root, size=8, offset=7)
    for x, y in zip(one.pairs(40, seed=1), other.pairs(40, seed=1), strict=True):
        assert torch.equal(x, y)
    assert one.pairs(200, seed=0)[0].min() == 7


def test_the_seed_decides_and_the_global_generator_does_not(root):
    made = FolderPairs(root, size=8, offset=0)
    state = torch.get_rng_state()
    first, again = made.pairs(50, seed=4), made.pairs(50, seed=4)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not torch.equal(first[0], made.pairs(50, seed=5)[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(made, ConceptSource)
    assert [tuple(t.shape) for t in made.pairs(0, seed=0)] == [(0,), (0,), (0, 3)]


def test_a_concept_may_have_pairs_that_differ_alone(tmp_path):
    made = FolderPairs(write(tmp_path, not_shape=("1",)), size=8, offset=3)
    a, b, shared = made.pairs(2, seed=0)
    assert (made.names, a.tolist(), b.tolist(), shared.tolist()) == (("shape",), [3, 3], [4, 4], [[True, False]] * 2)


def test_hidden_files_are_left_out(root):
    (root / ".DS_Store").write_text("")
    (root / "pose" / "a" / "._1.png").write_text("")
    assert len(FolderPairs(root, size=8, offset=0).extra) == 12


def test_all_that_is_wrong_is_said_at_once(root):
    (root / "pose" / "a" / "2.png").unlink()
    (root / "light" / "b" / "x.png").rename(root / "light" / "b" / "y.png")
    (root / "empty" / "a").mkdir(parents=True)
    (root / "not-").mkdir()
    (root / "notes.txt").write_text("")
    (root / "light" / "c").mkdir()
    (root / "light" / "a" / "list.csv").write_text("")
    with pytest.raises(DataError) as caught:
        FolderPairs(root, size=8, offset=0)
    text = str(caught.value)
    assert "pose/b holds 2.png, whose partners are missing in pose/a" in text
    assert "light/a holds x.png, whose partners are missing in light/b" in text
    assert "light/b holds y.png, whose partners are missing in light/a" in text
    assert "empty holds no pairs: images are expected in empty/a and empty/b" in text
    assert "'not-' names no concept" in text
    assert "light/a/list.csv, light/c, notes.txt belong to no pair" in text


def test_many_names_are_cut_short(tmp_path):
    write(tmp_path, pose=[f"{i:02}" for i in range(12)])
    for i in range(1, 12):
        (tmp_path / "pose" / "b" / f"{i:02}.png").unlink()
    with pytest.raises(DataError, match=r"pose/a holds 01\.png, .*08\.png and 3 more, whose partners are missing"):
        FolderPairs(tmp_path, size=8, offset=0)


def test_an_empty_or_missing_root_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"it holds no concept; expected is CONCEPT/a/NAME\.png"):
        FolderPairs(tmp_path, size=8, offset=0)
    with pytest.raises(DataError, match="nowhere is no folder"):
        FolderPairs(tmp_path / "nowhere", size=8, offset=0)
    (tmp_path / "residual").mkdir()
    with pytest.raises(DataError, match="'residual' names no concept"):
        FolderPairs(tmp_path, size=8, offset=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0, "channels": 2, "offset": 0}, "size must be .* got 0; channels must be 1 or 3, got 2"),
        ({"size": 8}, "pass either data or offset"),
        ({"size": 8, "offset": 1, "data": [1]}, "pass either data or offset"),
        ({"size": 8, "offset": -1}, "offset must be 0 or more, got -1"),
        ({"size": 8, "data": iter([])}, "data must have a length"),
    ],
)
def test_bad_options_are_refused(root, options, message):
    with pytest.raises(ConfigError, match=message):
        FolderPairs(root, **options)


def test_no_negative_number_of_pairs(root):
    with pytest.raises(ConfigError, match="pairs takes a whole number of pairs, got -1"):
        FolderPairs(root, size=8, offset=0).pairs(-1, seed=0)
