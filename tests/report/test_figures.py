from __future__ import annotations

import math
import sys

import pytest
import torch
from matplotlib.figure import Figure
from report_helpers import METRICS, history

from posthoc_inn.report import figures

DRAW = {
    "curve": lambda ax: figures.training_curve(history(3, 1), label="nats", levels={"floor": 0.5}, ax=ax),
    "histogram": lambda ax: figures.invariance_histogram(torch.randn(9, 4), ax=ax),
    "ladder": lambda ax: figures.likelihood_ladder(METRICS["likelihood"], ax=ax),
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


def test_calibration_is_drawn_beside_what_an_exact_t_gives():
    figure = figures.calibration_panels(
        {"norms": [5] * 19 + [30], "coverage_by_dimension": [0.9, 0.7, 0.95], "coverage_images": 100}
    )
    left, right = figure.axes
    assert [round(bar.get_height() * 125) for bar in left.patches[:20]] == [5] * 19 + [30]
    assert list(right.lines[0].get_ydata()) == [0.7, 0.9, 0.95]
    assert figures.to_png(figure, dpi=30)


def test_a_curve_with_gaps_is_drawn():
    rows = history(3, 1)
    rows["rows"][2]["train"] = math.nan
    figure = figures.training_curve(rows, label="nats")
    assert all(math.isfinite(limit) for limit in figure.axes[0].get_ylim())


def test_a_curve_of_one_look_is_a_point():
    rows = {**history(3, 1), "rows": history(3, 1)["rows"][:1]}
    assert figures.to_png(figures.training_curve(rows, label="nats"), dpi=30)
