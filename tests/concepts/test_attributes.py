"""Pairs from tables of attributes: who is paired, how often, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from posthoc_inn.concepts import AttributeSource, LabelsOf, as_source, attributes_of, read_table
from posthoc_inn.datasets import ColorDigits
from posthoc_inn.errors import ConfigError, DataError, UnknownNameError
from posthoc_inn.protocols import ConceptSource


def table(n=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "digit": torch.randint(10, (n,), generator=generator),
        "hat": (torch.rand(n, generator=generator) < 0.03).long(),
        "color": torch.rand(n, 3, generator=generator),
    }


def test_it_follows_the_protocol():
    assert isinstance(AttributeSource(table()), ConceptSource)


def test_pairs_share_the_concept_they_were_drawn_for_and_are_never_one_image_twice():
    values = table()
    a, b, shared = AttributeSource(values).pairs(5000, seed=1)
    assert shared.sum(dim=1).eq(1).all()
    assert not shared[:, 0].any()
    assert (a != b).all()
    for k, name in enumerate(("digit", "hat"), 1):
        rows = shared[:, k]
        assert torch.equal(values[name][a[rows]], values[name][b[rows]])
    # Each concept is drawn equally often.
    assert shared[:, 1:].float().mean(0).sub(1 / 3).abs().max() < 0.03


def test_values_are_balanced_and_partners_are_uniform():
    values = {"rare": torch.tensor([0] * 97 + [1] * 3)}
    a, b, _ = AttributeSource(values).pairs(20_000, seed=0)
    assert abs(values["rare"][a].float().mean() - 0.5) < 0.02
    pairs = torch.stack([a, b], 1)[values["rare"][a] == 1]
    _, counts = torch.unique(pairs, dim=0, return_counts=True)
    assert len(counts) == 6  # ordered pairs of three images
    assert counts.float().std() / counts.float().mean() < 0.1


def test_a_continuous_value_is_shared_with_the_nearest_as_a_slow_search_finds_them():
    values = table(120)["color"]
    source = AttributeSource({"color": values}, neighbors=3)
    a, b, _ = source.pairs(8000, seed=0)
    distance = torch.cdist(values.double(), values.double()).fill_diagonal_(torch.inf)
    nearest = distance.argsort(dim=1)[:, :3]
    assert (nearest[a] == b[:, None]).any(dim=1).all()
    assert len(torch.unique(torch.stack([a, b], 1), dim=0)) == 360  # every neighbour of every image


def test_all_agreeing_categories_are_marked_where_asked_for():
    values = {"x": torch.tensor([0, 0, 1, 1]), "y": torch.tensor([0, 0, 1, 0])}
    a, b, shared = AttributeSource(values, agree="all").pairs(500, seed=0)
    expected = torch.stack([values["x"][a] == values["x"][b], values["y"][a] == values["y"][b]], 1)
    assert torch.equal(shared[:, 1:], expected)


def test_missing_values_take_no_part():
    values = {"x": torch.tensor([-1, 0, 0, 1, 1, -1]), "y": torch.tensor([0.0, float("nan"), 0.1, 5.0, 5.1, 9.0])}
    a, b, shared = AttributeSource(values, neighbors=1).pairs(500, seed=0)
    x = shared[:, 1]
    assert not {0, 5} & set(a[x].tolist() + b[x].tolist())
    assert 1 not in set(a[~x].tolist() + b[~x].tolist())


def test_pairs_are_a_function_of_the_seed_alone():
    source = AttributeSource(table())
    first = source.pairs(50, seed=3)
    torch.manual_seed(9)
    assert all(torch.equal(x, y) for x, y in zip(first, source.pairs(50, seed=3), strict=True))
    assert not torch.equal(first[0], source.pairs(50, seed=4)[0])


def test_a_subset_is_numbered_anew():
    values = table()
    index = torch.tensor([5, 5, 9, 30, *range(100, 200)])
    a, b, shared = AttributeSource(values, concepts=["digit"]).subset(index).pairs(500, seed=0)
    assert int(max(a.max(), b.max())) < len(index)
    assert torch.equal(values["digit"][index[a]], values["digit"][index[b]])
    assert shared.shape == (500, 2)
    with pytest.raises(DataError, match="The table has 400 rows, the data an image number 400"):
        AttributeSource(values).subset(torch.tensor([400]))


@pytest.mark.parametrize(
    ("values", "options", "error", "match"),
    [
        ({"x": [1, 1, 1]}, {}, DataError, "'x' has one value only"),
        ({"x": [-1, -1, -1]}, {}, DataError, "'x' has no known value"),
        ({"x": [1, 2, 3]}, {}, DataError, "'x' has no pairs"),
        ({"x": [0.5, 0.5]}, {}, DataError, "'x' has one value only"),
        ({"x": [0, 0, 1, 1], "y": [0, 1]}, {}, DataError, "one value an image; got"),
        ({"x": [0, 0, 1, 1]}, {"concepts": ["xx"]}, UnknownNameError, "no attribute 'xx'. Did you mean 'x'|Known: x"),
        ({"x": [0, 0, 1, 1]}, {"concepts": ["x", "x"]}, ConfigError, "named twice"),
        ({"x": [0, 0, 1, 1]}, {"concepts": []}, ConfigError, "no concepts"),
        ({"x": [0, 0, 1, 1]}, {"neighbors": 0}, ConfigError, "neighbors must be at least 1"),
        ({"x": [0, 0, 1, 1]}, {"agree": "some"}, ConfigError, "agree must be"),
        ({"x": torch.zeros(4, 2, dtype=torch.long)}, {}, DataError, "whole numbers, booleans or texts"),
        ({"x": [object(), object()]}, {}, DataError, "neither numbers nor texts"),
    ],
)
def test_what_cannot_be_learned_is_refused_by_name(values, options, error, match):
    with pytest.raises(error, match=match):
        AttributeSource(values, **options)


# ---- tables in files


def test_a_csv_table_is_put_in_the_order_of_the_images(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("image_id,kind,size,tag\nb.png,2,0.5,red\na.png,1,,\nc.png,,1.5,blue\n")
    found = read_table(path, names=["x/a.png", "x/b.png", "x/c.png"])
    assert found["kind"].tolist() == [1, 2, -1]
    assert found["size"].isnan().tolist() == [True, False, False]
    assert found["tag"].tolist() == [-1, 1, 0]
    assert read_table(path)["kind"].tolist() == [2, 1, -1]


def test_celebas_plus_and_minus_one_are_present_and_absent(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("image_id,Smiling\n1.jpg,-1\n2.jpg,1\n3.jpg,-1\n")
    assert read_table(path)["Smiling"].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "needs a header"),
        ("a,a\n1,2\n", "needs a header of different names"),
        ("a,b\n1,2\n1\n", "Row 3 of the table .* has 1 cells, its header 2"),
        ("image_id,b\nx.png,2\n", r"no row for 1 of 1 images, first y\.png"),
    ],
)
def test_a_broken_table_is_named(tmp_path, text, match):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=match):
        read_table(path, names=["y.png"])
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path / "none.csv")


# ---- what users pass


def test_the_embedded_digits_bring_their_attributes():
    data = ColorDigits(train=False)
    found = attributes_of(data)
    assert set(found) == {"digit", "foreground", "background"}
    assert torch.equal(found["digit"], data.digits)
    assert torch.allclose(found["background"].float(), data.background)
    source = as_source(["digit", "background"], DataLoader(data, batch_size=8))
    assert source.names == ("digit", "background")
    assert as_source("attributes", data).names == ("digit", "foreground", "background")


def test_a_mapping_must_have_a_row_an_image():
    data = TensorDataset(torch.rand(4, 3, 8, 8))
    assert as_source({"x": [0, 0, 1, 1]}, data).names == ("x",)
    with pytest.raises(DataError, match="has 2 rows, the data 4 images"):
        as_source({"x": [0.0, 1.0]}, data)


@pytest.mark.parametrize(
    ("concepts", "error", "match"),
    [
        (3, ConfigError, "concepts must be 'labels'"),
        ([], ConfigError, "concepts must be"),
        ("no-such-source", UnknownNameError, "no concept source 'no-such-source'"),
        (["digit"], DataError, "has no attributes of its own"),
        ("none.csv", DataError, "cannot be read"),
    ],
)
def test_what_stands_for_no_concepts_is_refused(concepts, error, match):
    with pytest.raises(error, match=match):
        as_source(concepts, TensorDataset(torch.rand(4, 3, 8, 8)))


def test_labels_stand_for_what_comes_with_the_images():
    assert isinstance(as_source("labels", None), LabelsOf)
    with pytest.raises(DataError, match="needs labels with the images"):
        LabelsOf().source({})
