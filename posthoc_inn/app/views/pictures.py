"""Look, Attack, Compare and Numbers: pictures, and a few controls."""

from __future__ import annotations

from typing import Any

from posthoc_inn.app import html
from posthoc_inn.app.answers import Answer
from posthoc_inn.app.fitted import Shown
from posthoc_inn.app.parts.attack import STRONGEST, attack
from posthoc_inn.app.parts.compare import compare
from posthoc_inn.app.parts.look import MOST, look, mix
from posthoc_inn.app.parts.numbers import numbers
from posthoc_inn.app.views.frame import CHOOSE, CHOOSE_OTHER, Frame
from posthoc_inn.app.words import ATTACK, COMPARE, LOOK, NUMBERS
from posthoc_inn.errors import DataError


def needed(shown: Shown | None) -> Shown:
    """Return the picture.

    Raises:
        DataError: None is chosen.
    """
    if shown is None:
        raise DataError(CHOOSE)
    return shown


def look_view(frame: Frame) -> None:
    """Show samples, and z of one picture with v of another."""
    gr, opened = frame.gr, frame.opened
    gr.Markdown(LOOK.about)
    with gr.Row():
        count = gr.Slider(1, MOST, 8, step=1, label="Samples", elem_id="look-count")
        seed = gr.Slider(0, 99, 0, step=1, label="Seed: other samples", elem_id="look-seed")
    out = gr.HTML(elem_id="look-out")

    def show(shown: Shown | None, other: Shown | None, layer: float, count: float, seed: float) -> str:
        answer = look(opened.layer(layer), needed(shown), count=int(count), seed=int(seed))
        return html.of_answer(answer)

    frame.listen(LOOK, show, [count, seed], [out])
    with gr.Accordion("Mix: what the layer sees of one picture, with what it ignores of another", open=True):
        mixed = gr.HTML(elem_id="mix-out")

    def show_mix(shown: Shown | None, other: Shown | None, layer: float) -> str:
        if other is None:
            raise DataError(CHOOSE_OTHER)
        return html.of_answer(mix(opened.layer(layer), needed(shown), other))

    frame.listen(LOOK, show_mix, [], [mixed])
    frame.explain(LOOK)


def attack_view(frame: Frame) -> None:
    """Show an attacked picture, and what each layer sees of it."""
    gr, opened = frame.gr, frame.opened
    gr.Markdown(ATTACK.about)
    with gr.Row():
        method = gr.Radio([("FGSM: one step", "fgsm"), ("PGD: ten steps", "pgd")], value="fgsm", label="Attack")
        levels = gr.Slider(
            1, STRONGEST, 8, step=1, label="Strength", info="largest change of a pixel, of 255", elem_id="attack-levels"
        )
    out = gr.HTML(elem_id="attack-out")

    def show(shown: Shown | None, other: Shown | None, layer: float, method: Any, levels: float) -> str:
        answer = attack(opened, opened.layer(layer), needed(shown), method=method, levels=levels)
        return html.of_answer(answer)

    frame.listen(ATTACK, show, [method, levels], [out])
    frame.explain(ATTACK)


def compare_view(frame: Frame) -> None:
    """Show samples of two layers, or models, side by side."""
    gr, opened = frame.gr, frame.opened
    gr.Markdown(COMPARE.about)
    names = [layer.name for layer in opened.layers]
    with gr.Row():
        left = gr.Dropdown(names, value=names[0], label="One", elem_id="compare-left")
        right = gr.Dropdown(names, value=names[-1], label="The other", elem_id="compare-right")
        seed = gr.Slider(0, 99, 0, step=1, label="Seed", elem_id="compare-seed")
    out = gr.HTML(elem_id="compare-out")

    def show(shown: Shown | None, other: Shown | None, layer: float, left: str, right: str, seed: float) -> str:
        pair = opened.named(left), opened.named(right)
        answer = compare(*pair, needed(shown), seed=int(seed))
        if pair[0] is pair[1]:
            hint = (
                "Both are the same. Open the page on several bundles to compare them: posthoc-inn app --bundle runs/a "
                "--bundle runs/b, or on a sweep's directory."
            )
            answer = Answer(answer.rows[:1], (), (hint, *answer.doubts[:1]))
        return html.of_answer(answer)

    frame.listen(COMPARE, show, [left, right, seed], [out])
    frame.explain(COMPARE)


def numbers_view(frame: Frame) -> None:
    """Show the figures of the fit."""
    gr, opened = frame.gr, frame.opened
    gr.Markdown(NUMBERS.about)
    out = gr.HTML(elem_id="numbers-out")

    def show(shown: Shown | None, other: Shown | None, layer: float) -> str:
        return html.of_findings(numbers(opened.layer(layer)))

    frame.listen(NUMBERS, show, [], [out])
    frame.explain(NUMBERS)
