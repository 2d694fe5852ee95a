from __future__ import annotations

import math
import sys

import pytest
import torch
from matplotlib.figure import Figure
from report_helpers import METRICS, history

from posthoc_inn.errors import ShapeError
from posthoc_inn.report import figures

DRAW = {
    "grid": lambda ax: figures.sample_grid(
        torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8), torch.rand(2, 3, 1, 8, 8), ax=ax
    ),
    "curve": lambda ax: figures.training_curve(history(3, 1), label="nats", levels={"floor": 0.5}, ax=ax),
    "histogram": lambda ax: figures.invariance_histogram(torch.randn(9, 4), ax=ax),
    "ruler": lambda ax: figures.likelihood_ruler(METRICS["likelihood"], ax=ax),
}


@pytest.mark.parametrize("name", DRAW)
def test_a_figure_is_drawn_into_the_axes_that_are_given(name):
    figure = Figure()
    ax = figure.add_subplot()
    assert DRAW[name](ax) is figure
    assert ax.get_children()


@pytest.mark.parametrize("name", DRAW)
def test_a_figure_of_its_own_becomes_a_png_without_any_global_state(name):
    assert figures.to_png(DRAW[name](None), dpi=30).startswith(b"\x89PNG")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_a_grid_shows_every_picture_and_frames_the_samples_that_differ():
    figure = figures.sample_grid(
        torch.rand(2, 3, 8, 8),
        torch.rand(2, 3, 8, 8),
        torch.rand(2, 3, 3, 8, 8),
        row_labels=["a", "b"],
        sample_labels=[["", "b", ""], ["a", "", ""]],
    )
    ax = figure.axes[0]
    assert len(ax.images) == 2 * 5
    assert len(ax.patches) == 2
    texts = [text.get_text() for text in ax.texts]
    assert {"input", "a", "b"} <= set(texts)


def test_pictures_keep_their_colours():
    red = torch.zeros(1, 3, 4, 4)
    red[:, 0] = 1
    image = figures.sample_grid(red, red, red[:, None]).axes[0].images[0]
    assert image.get_array()[0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("samples", [torch.rand(2, 3, 8, 8), torch.rand(1, 2, 3, 8, 8), torch.rand(2, 0, 3, 8, 8)])
def test_a_grid_of_other_shapes_is_refused(samples):
    with pytest.raises(ShapeError, match=r"A grid takes images and reconstructions \(B, C, H, W\)"):
        figures.sample_grid(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8), samples)


def test_a_curve_with_gaps_is_drawn():
    rows = history(3, 1)
    rows["rows"][2]["train"] = math.nan
    figure = figures.training_curve(rows, label="nats")
    assert all(math.isfinite(limit) for limit in figure.axes[0].get_ylim())


def test_a_curve_of_one_look_is_a_point():
    rows = {**history(3, 1), "rows": history(3, 1)["rows"][:1]}
    assert figures.to_png(figures.training_curve(rows, label="nats"), dpi=30)
