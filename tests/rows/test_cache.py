"""Columns in memory and on disk behave alike, stay within the budget, and survive a kill."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from posthoc_inn.errors import DataError, ShapeError
from posthoc_inn.rows.cache import Budget, Cache, pixels, unit


def filled(cache, rows=100, step=7):
    g = torch.Generator().manual_seed(0)
    z, label = torch.randn(rows, 3, 2, generator=g), torch.randint(9, (rows,), generator=g)
    for a, b in zip(z.split(step), label.split(step), strict=True):
        cache.append(z=a, prediction=b)
    return z, label


@pytest.mark.parametrize("budget", [0, 500, 10**9])
def test_rows_come_back_wherever_they_are_kept(tmp_path, budget):
    cache = Cache(tmp_path, budget)
    z, label = filled(cache)
    assert cache.is_on_disk == (budget < 10**9)
    assert torch.equal(cache["z"].tensor(), z)
    pick = torch.tensor([99, 0, 5, 5])
    assert torch.equal(cache["prediction"].rows(pick), label[pick])
    parts = [b[0] for b in cache.batches(9, "z")]
    assert torch.equal(torch.cat(parts), z)
    parts[0].zero_()  # a tensor of its own
    assert torch.equal(cache["z"].span(0, 9), z[:9])


def test_memory_never_exceeds_the_budget(tmp_path):
    cache = Cache(tmp_path, 1000)
    filled(cache, rows=500)
    held = sum(c.nbytes for name in cache.names() for c in cache[name]._blocks)
    assert held <= 1000


@pytest.mark.parametrize("rows", [[1, 1, 1, 1], [100, 3], [5, 200, 7]])
def test_blocks_of_any_size_join_in_order(tmp_path, rows, monkeypatch):
    monkeypatch.setattr("posthoc_inn.rows.cache.BLOCK", 64)  # five rows of three numbers
    z = torch.randn(sum(rows), 3, generator=torch.Generator().manual_seed(0))
    for budget in (0, 500, 10**9):
        cache = Cache(tmp_path / str(budget), budget)
        for part in z.split(rows):
            cache.append(z=part)
        assert torch.equal(cache["z"].tensor(), z)
        order = torch.randperm(len(z), generator=torch.Generator().manual_seed(1))
        for index in order.split(4):
            assert torch.equal(cache["z"].rows(index), z[index])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from Linux's /proc")
@pytest.mark.parametrize(("budget", "allowed"), [(10**9, 256 + 64 + 32), (0, 32)])
def test_joining_needs_one_block_more_and_rows_on_disk_take_no_memory(tmp_path, budget, allowed):
    script = """
import sys, torch
from pathlib import Path
from posthoc_inn.rows.cache import Cache

def peak_megabytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) // 1024

cache = Cache(Path(sys.argv[1]), int(sys.argv[2]))
rows = torch.ones(256, 1024)
cache.append(z=rows)
before = peak_megabytes()
for _ in range(255):
    cache.append(z=rows)  # 256 MiB in all
cache["z"].tensor()
print(peak_megabytes() - before)
"""
    command = [sys.executable, "-c", script, str(tmp_path), str(budget)]
    assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) <= allowed


def test_what_a_dropped_column_held_may_be_used_again(tmp_path):
    budget = Budget(1000)
    cache, other = Cache(tmp_path / "a", budget), Cache(tmp_path / "b", budget)
    cache.append(z=torch.zeros(200))
    other.append(z=torch.zeros(200))
    assert not cache.is_on_disk
    assert other.is_on_disk
    cache.drop("z")
    other.append(mean=torch.zeros(200))
    assert not other["mean"].is_on_disk


def test_rows_may_be_appended_after_reading(tmp_path):
    for budget in (0, 10**9):
        cache = Cache(tmp_path / str(budget), budget)
        z, _ = filled(cache)
        assert len(cache["z"].tensor()) == 100
        cache.append(z=z[:3])
        assert torch.equal(cache["z"].tensor(), torch.cat([z, z[:3]]))


@pytest.mark.parametrize("budget", [0, 10**9])
def test_a_saved_cache_is_found_again_under_its_fingerprint_only(tmp_path, budget):
    cache = Cache(tmp_path, budget)
    z, label = filled(cache)
    cache.save("a")
    again = Cache(tmp_path, budget)
    assert not again.restore("b")
    assert again.restore("a")
    assert torch.equal(again["z"].tensor(), z)
    assert torch.equal(again["prediction"].tensor(), label)


def test_an_unfinished_cache_is_not_taken_for_a_whole_one(tmp_path):
    filled(Cache(tmp_path, 0))
    assert not Cache(tmp_path, 0).restore("a")


@pytest.mark.parametrize("damage", ["cut", "gone", "no index", "half an index", "another kind of index"])
def test_what_a_killed_run_left_incomplete_is_read_anew(tmp_path, damage):
    cache = Cache(tmp_path, 0)
    filled(cache)
    cache.save("a")
    file, index = tmp_path / "z.raw", tmp_path / "cache.json"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    elif damage == "gone":
        file.unlink()
    elif damage == "no index":
        index.unlink()
    else:
        index.write_text(index.read_text()[:20] if damage == "half an index" else '["a"]')
    found = Cache(tmp_path, 0)
    assert not found.restore("a")
    assert found.names() == []


def test_a_cache_whose_directory_is_removed_can_still_be_filled_and_read(tmp_path):
    cache = Cache(tmp_path / "rows", 0)
    cache.append(z=torch.zeros(3, 2))
    shutil.rmtree(tmp_path / "rows")
    cache.append(z=torch.ones(3, 2))
    assert cache["z"].span(2, 4).tolist() == [[0, 0], [1, 1]]
    assert cache["z"].rows(torch.tensor([5, 0])).tolist() == [[1, 1], [0, 0]]


def test_the_index_goes_first_when_a_cache_is_removed(tmp_path, monkeypatch):
    cache = Cache(tmp_path / "rows", 0)
    filled(cache)
    cache.save("a")
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # killed here
    cache.remove()
    assert not Cache(tmp_path / "rows", 0).restore("a")


def test_a_digest_is_that_of_the_values():
    caches = [Cache() for _ in range(3)]
    for cache, values in zip(caches, ([1.0, 2.0], [1.0, 2.0], [1.0, 3.0]), strict=True):
        cache.append(z=torch.tensor(values)[:, None])
    first, same, other = (cache.digest("z") for cache in caches)
    assert first == same != other


def test_rows_of_another_shape_are_refused_with_advice():
    cache = Cache()
    cache.append(z=torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"shape \(3,\).*resize the images"):
        cache.append(z=torch.zeros(2, 4))


def test_columns_grow_together():
    with pytest.raises(ShapeError, match="grow together"):
        Cache().append(a=torch.zeros(2), b=torch.zeros(3))


def test_a_missing_column_names_those_there_are():
    cache = Cache()
    cache.append(z=torch.zeros(2))
    with pytest.raises(DataError, match="no 'mean'; it has z"):
        cache["mean"]


def test_pictures_lose_less_than_half_a_level():
    images = torch.rand(4, 3, 8, 8)
    assert (unit(pixels(images)) - images).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.skipif(os.name == "nt", reason="Windows does not remove a file that is mapped")
def test_rows_that_were_mapped_can_be_read_after_their_files_are_gone(tmp_path):
    cache = Cache(tmp_path / "rows", 0)
    values = torch.arange(12.0).reshape(6, 2)
    cache.append(z=values)
    assert cache.is_on_disk
    cache["z"].tensor()
    shutil.rmtree(tmp_path / "rows")
    assert torch.equal(torch.cat([part for (part,) in cache.batches(4, "z")]), values)


@pytest.mark.parametrize("name", ["label:../../x", "label:a/b", "label:\0", "label:" + "n" * 5000, "label:caf\udce9"])
def test_a_column_of_any_name_stays_in_its_directory(tmp_path, name):
    cache = Cache(tmp_path / "cache", 0)
    cache.append(**{name: torch.arange(4)})
    cache.save("digest")
    again = Cache(tmp_path / "cache", 0)
    assert again.restore("digest")
    assert again[name].tensor().tolist() == [0, 1, 2, 3]
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}
