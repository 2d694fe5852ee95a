"""The one grid of pictures: what it draws, where, and what it refuses."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from matplotlib.figure import Figure

from posthoc_inn.drawing import Column, columns_of, grid, sample_columns, shortened, to_png
from posthoc_inn.drawing.grids import GAP, SAMPLES, WIDE
from posthoc_inn.errors import ShapeError


def table(rows=2, columns=3, **changes):
    return columns_of(torch.rand(rows, columns, 3, 8, 8), **changes)


def lefts(figure):
    """Return the left ends of the pictures, in the order of columns."""
    return sorted({round(image.get_extent()[0], 4) for image in figure.axes[0].images})


def texts(figure):
    return {text.get_text(): text for text in figure.axes[0].texts}


def test_a_grid_is_drawn_into_the_axes_that_are_given():
    figure = Figure()
    assert grid(table(), ax=figure.add_subplot()) is figure
    assert len(figure.axes[0].images) == 6


def test_a_grid_of_its_own_becomes_a_png_without_any_global_state():
    assert to_png(grid(table()), dpi=30).startswith(b"\x89PNG")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_columns_stand_a_gap_apart_and_a_wider_one_where_it_is_asked_for():
    step = 1 + GAP
    assert lefts(grid(table(columns=3))) == pytest.approx([0, step, 2 * step])
    assert lefts(grid(table(columns=3, gaps=(1,)))) == pytest.approx([0, step + WIDE, 2 * step + WIDE])


def test_pictures_keep_their_colours():
    red = torch.zeros(1, 1, 3, 4, 4)
    red[:, :, 0] = 1
    image = grid(columns_of(red)).axes[0].images[0]
    assert image.get_array()[0, 0].tolist() == [1, 0, 0]


def test_a_picture_that_is_all_nan_leaves_its_place_empty():
    pictures = torch.rand(2, 2, 3, 8, 8)
    pictures[0, 1] = math.nan
    assert len(grid(columns_of(pictures)).axes[0].images) == 3


def test_maps_share_the_limit_that_is_given():
    figure = grid([Column(torch.rand(2, 8, 8))], limit=0.25)
    assert {image.get_clim() for image in figure.axes[0].images} == {(0, 0.25)}


def test_text_stands_above_below_and_beside():
    figure = grid(
        [Column(torch.rand(2, 3, 8, 8), "above", ["one", "two"], [False, True], footer="below")],
        row_labels=["first", "second"],
        note="note",
    )
    found = texts(figure)
    assert {"above", "one", "two", "below", "first", "second", "note"} <= set(found)
    assert found["one"].get_color() != found["two"].get_color()
    heights = [found[name].get_position()[1] for name in ("above", "one", "two", "below", "note")]
    assert heights == sorted(heights)
    low, high = figure.axes[0].get_ylim()
    assert all(high <= height <= low for height in heights)


def test_a_heading_may_stand_over_several_columns():
    pictures = torch.rand(1, 3, 8, 8)
    figure = grid([Column(pictures, "both", span=2), Column(pictures)])
    assert texts(figure)["both"].get_position()[0] == pytest.approx((2 + GAP) / 2)


def test_samples_that_differ_are_framed_and_stand_behind_a_rule():
    images = torch.rand(2, 3, 8, 8)
    columns = sample_columns(images, images, torch.rand(2, 3, 3, 8, 8), [["", "b", ""], ["a", "", ""]])
    ax = grid(columns, row_labels=["p", "q"]).axes[0]
    assert len(ax.images) == 2 * 5
    assert len(ax.patches) == 2
    assert len(ax.lines) == 1
    assert {"input", SAMPLES, "a", "b", "p", "q"} <= {text.get_text() for text in ax.texts}


@pytest.mark.parametrize("samples", [torch.rand(2, 3, 8, 8), torch.rand(1, 2, 3, 8, 8), torch.rand(2, 0, 3, 8, 8)])
def test_samples_of_other_shapes_are_refused(samples):
    with pytest.raises(ShapeError, match=r"A grid takes images and reconstructions \(B, C, H, W\)"):
        sample_columns(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8), samples)


@pytest.mark.parametrize("pictures", [torch.rand(2, 3, 8, 8), torch.rand(0, 2, 3, 8, 8), torch.rand(2, 0, 3, 8, 8)])
def test_a_table_of_other_shapes_is_refused(pictures):
    with pytest.raises(ShapeError, match=r"A grid takes pictures \(R, N, C, H, W\)"):
        columns_of(pictures)


@pytest.mark.parametrize(
    "columns",
    [[], [Column(torch.rand(0, 3, 8, 8))], [Column(torch.rand(1, 3, 8, 8)), Column(torch.rand(2, 3, 8, 8))]],
    ids=["no column", "no row", "rows that differ"],
)
def test_columns_that_make_no_table_are_refused(columns):
    with pytest.raises(ShapeError, match="A grid takes columns with as many rows"):
        grid(columns)


def test_a_long_name_is_shortened_and_says_so():
    assert shortened("a" * 14) == "a" * 14
    assert shortened("a" * 15) == "a" * 13 + "…"
