"""Concepts: sliders that change a picture while they move."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from posthoc_inn.app import html
from posthoc_inn.app.fitted import Shown
from posthoc_inn.app.parts.concepts import KNOBS, between, changed, concept_names, knobs, own_value, taken, turned
from posthoc_inn.app.views.frame import CHOOSE_OTHER, Frame, unchanged
from posthoc_inn.app.views.pictures import needed
from posthoc_inn.app.words import CONCEPTS
from posthoc_inn.errors import DataError


def concepts_view(frame: Frame) -> None:
    """Show a slider a dimension, one towards the other picture, and each concept taken from it."""
    gr, opened = frame.gr, frame.opened
    gr.Markdown(CONCEPTS.about)
    names = list(dict.fromkeys(name for layer in opened.layers for name in concept_names(layer)))
    if not names:
        gr.HTML(
            html.of_problem(
                "No bundle here has concepts. Fit with them: posthoc-inn fit --concepts labels (or a table, or names "
                "of the data's attributes), and open the page on that bundle."
            )
        )
        frame.explain(CONCEPTS)
        return
    concept = gr.Radio(names, value=names[0], label="Concept", elem_id="concept")
    out = gr.HTML(elem_id="concepts-out")
    value = gr.State()
    amount = gr.Slider(
        0, 1, 0, step=0.05, label="From this picture's (0) to the other's (1)", buttons=[], elem_id="amount"
    )
    with gr.Row(elem_classes=["inn-knobs"]):
        sliders = [
            gr.Slider(
                -3, 3, 0, step=0.05, label=f"{k + 1}", visible=False, min_width=300, buttons=[], elem_id=f"knob-{k}"
            )
            for k in range(KNOBS)
        ]
    reset = gr.Button("Back to the picture", size="sm")

    def settings(layer: Any, name: str, factor: Tensor) -> list[Any]:
        found = knobs(layer, name, factor)
        shown = [
            gr.Slider(knob.low, knob.high, knob.value, label=f"{name} {knob.dimension + 1}", visible=True)
            for knob in found
        ]
        return shown + [gr.Slider(visible=False)] * (KNOBS - len(found))

    def begin(shown: Shown | None, other: Shown | None, number: float, name: str, *_: Any) -> Any:
        layer, one = opened.layer(number), needed(shown)
        factor = own_value(layer, one, name)
        answer = html.of_answer(changed(layer, one, name, factor), is_wide=True)
        return answer, factor, 0.0, *settings(layer, name, factor)

    def move(shown: Shown | None, other: Shown | None, number: float, name: str, now: Any, amount: float) -> Any:
        layer, one = opened.layer(number), needed(shown)
        if other is None:
            return html.of_problem(CHOOSE_OTHER), *unchanged(1 + KNOBS)
        factor = between(layer, one, other, name, amount)
        answer = html.of_answer(changed(layer, one, name, factor), is_wide=True)
        return answer, factor, *settings(layer, name, factor)

    def turn(shown: Shown | None, other: Shown | None, number: float, name: str, now: Any, *wanted: float) -> Any:
        layer, one = opened.layer(number), needed(shown)
        before = own_value(layer, one, name) if now is None else now
        factor = turned(layer, name, before, list(wanted))
        return html.of_answer(changed(layer, one, name, factor), is_wide=True), factor

    changes = [frame.picture.change, frame.layer.change, frame.active.change, concept.change]
    frame.listen(
        CONCEPTS, begin, [concept], [out, value, amount, *sliders], events=[*changes, reset.click], is_moving=True
    )
    frame.listen(
        CONCEPTS, move, [concept, value, amount], [out, value, *sliders], events=[amount.input], is_moving=True
    )
    frame.listen(
        CONCEPTS,
        turn,
        [concept, value, *sliders],
        [out, value],
        events=[slider.input for slider in sliders],
        is_moving=True,
    )
    swapped = gr.HTML(elem_id="taken-out")

    def take(shown: Shown | None, other: Shown | None, number: float) -> str:
        if other is None:
            raise DataError(CHOOSE_OTHER)
        return html.of_answer(taken(opened.layer(number), needed(shown), other))

    frame.listen(CONCEPTS, take, [], [swapped])
    frame.explain(CONCEPTS)
