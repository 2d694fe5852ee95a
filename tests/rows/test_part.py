"""Some rows of a cache as a cache, against plain indexing; and which held-out rows choose."""

from __future__ import annotations

import pytest
import torch

from posthoc_inn.rows.cache import Cache, joined_rows
from posthoc_inn.rows.part import CachePart, part_held_out


def numbered(n, **more):
    cache = Cache(budget=more.pop("budget", 2**20))
    cache.append(z=torch.arange(float(n))[:, None].repeat(1, 3), **more)
    return cache


@pytest.mark.parametrize("budget", [2**20, 0])
def test_a_part_reads_what_indexing_reads(budget):
    cache, index = numbered(50, budget=budget), torch.tensor([3, 4, 10, 30, 31, 49])
    part = CachePart(cache, index)
    expected = torch.arange(50.0)[index]
    column = part["z"]
    assert (len(part), len(column), column.shape, part.is_on_disk) == (6, 6, (3,), budget == 0)
    assert torch.equal(column.rows(torch.tensor([5, 0]))[:, 0], expected[[5, 0]])
    assert torch.equal(column.span(1, 4)[:, 0], expected[1:4])
    assert torch.equal(column.span(4, 9)[:, 0], expected[4:])
    assert torch.equal(column.tensor()[:, 0], expected)
    assert torch.equal(torch.cat([z for (z,) in part.batches(4, "z")])[:, 0], expected)
    joined = joined_rows([column, cache["z"]], torch.tensor([0, 5, 6, 55]))
    assert joined[:, 0].tolist() == [3, 49, 0, 49]
    assert sorted(part.some(None, seed=0).tolist()) == list(range(6))
    assert part.nbytes == 6 * 12
    alone = Cache()
    alone.append(z=column.tensor())
    assert part.digest("z") == alone.digest("z") != cache.digest("z")


def test_a_part_has_the_columns_that_come_later_and_takes_none():
    cache = numbered(5)
    part = CachePart(cache, torch.tensor([4, 1]))
    assert "mean" not in part
    cache.append(mean=torch.arange(5.0)[:, None])
    assert part.names() == ["z", "mean"]
    assert part["mean"].tensor().flatten().tolist() == [4, 1]
    for wrong in (
        lambda: part.append(z=torch.zeros(1, 3)),
        lambda: part["z"].append(torch.zeros(1, 3)),
        lambda: part.drop("z"),
        part.remove,
    ):
        with pytest.raises(TypeError, match="some rows of another"):
            wrong()
    assert len(cache["z"]) == 5


@pytest.mark.parametrize(("n", "chosen"), [(200, 100), (501, 250), (10_000, 4096)])
def test_held_out_rows_that_choose_are_not_measured(n, chosen):
    cache = numbered(n)
    selection, measured = part_held_out(cache, seed=3)
    numbers = [part["z"].tensor()[:, 0] for part in (selection, measured)]
    assert list(map(len, numbers)) == [chosen, n - chosen]
    assert torch.equal(torch.cat(numbers).sort().values, torch.arange(float(n)))
    # Folders come class by class: each part has as many of the first half.
    assert all(abs(float((part < n / 2).double().mean()) - 0.5) < 0.15 for part in numbers)
    assert torch.equal(selection.index, part_held_out(numbered(n), seed=3)[0].index)
    assert not torch.equal(selection.index, part_held_out(cache, seed=4)[0].index)


def test_few_images_are_not_parted():
    cache = numbered(199)
    assert part_held_out(cache, seed=0) == (cache, cache)
    cache = numbered(400, image=torch.arange(400) // 3)  # 134 images
    assert part_held_out(cache, seed=0) == (cache, cache)


def test_all_rows_of_an_image_stay_together():
    image = torch.arange(900) // 3
    image[-1] = -1  # of which nothing is known
    parts = part_held_out(numbered(900, image=image), seed=0)
    seen = [set(part["image"].tensor().tolist()) for part in parts]
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == 301
