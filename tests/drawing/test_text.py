"""Figures with names that users give: each is drawn, none is taken for mathematics, none makes a figure huge."""

from __future__ import annotations

import pytest
import torch
from hostile_names import HOSTILE_NAMES
from matplotlib.figure import Figure

from posthoc_inn.analysis import ConceptRelevance, Samples
from posthoc_inn.analysis.relevance import ConceptShares, Share
from posthoc_inn.analysis.sweep_result import SweepPoint, SweepResult
from posthoc_inn.drawing import Column, as_label, axes, grid, shortened, to_png, wrapped
from posthoc_inn.drawing.text import cleaned

hostile = pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES.keys())
PICTURES = torch.rand(2, 3, 8, 8)


def check(figure: Figure) -> None:
    """Draw a figure as it is saved: a warning is an error, and so is mathematics that cannot be read."""
    assert to_png(figure, dpi=40).startswith(b"\x89PNG")
    width, height = figure.get_size_inches()
    assert width < 30
    assert height < 30


@hostile
def test_a_grid_shows_any_text_anywhere(name):
    column = Column(PICTURES, name, [name] * 2, [True, False], [name] * 2, name)
    check(grid([column], row_labels=[name] * 2, note=name))


@hostile
def test_axes_show_any_name(name):
    figure, ax = axes(None, 7, 5)
    ax.set_title(as_label(name))
    ax.set_xticks([0, 1], [as_label(name)] * 2, rotation=25)
    ax.plot([0, 1], [0, 1], label=as_label(name))
    ax.legend()
    check(figure)


@hostile
def test_samples_of_any_class_are_drawn(name):
    shown = Samples(
        images=2,
        samples=1,
        seed=0,
        agreement=0.5,
        names=(name, name),
        predictions=(name, "b"),
        sample_predictions=(("",), (name,)),
        inputs=PICTURES,
        reconstructions=PICTURES,
        pictures=PICTURES[:, None],
    )
    check(shown.figure())


@pytest.mark.parametrize("name", [HOSTILE_NAMES[k] for k in ("mathematics", "line break", "long", "undecodable")])
def test_concepts_and_points_of_any_name_are_drawn(name):
    share = Share(0.5, 0.1, (0.4, 0.6))
    relevance = ConceptRelevance((ConceptShares(name, share, share, share, share),), 4, 4, name)
    check(relevance.figure())
    concepts = {name: {m: share.to_dict() for m in ("total_effect", "first_order")}}
    sweep = SweepResult(tuple(SweepPoint(n, 0, n, None, 1.0, None, 0.5, concepts) for n in (name, "b")), "layer")
    check(sweep.figure())
    assert sweep.table().count("\n") == 3
    assert len(sweep.table()) < 1000


def test_what_is_drawn_is_the_name_itself():
    ax = grid([Column(PICTURES, "$x^$")]).axes[0]
    (text,) = [t for t in ax.texts if "x" in t.get_text()]
    # As matplotlib's own drawing sees it: no mathematics, and no backslash left.
    assert text._preprocess_math(text.get_text()) == ("$x^$", False)


def test_a_plugins_figure_with_a_name_that_is_no_mathematics_is_still_saved():
    figure, ax = axes(None, 4, 3)
    ax.set_title("$x^$")
    check(figure)


def test_long_names_are_cut_and_control_characters_seen():
    assert shortened("a\x1b" + "b" * 50, 8) == "a\\x1bbb…"
    assert wrapped("n." * 2500).count("\n") < 12
    assert cleaned("x\n" * 500).count("\n") == 12
