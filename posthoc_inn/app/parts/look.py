"""Look: what a layer cannot tell apart from a picture, and z of one picture with v of another."""

from __future__ import annotations

from posthoc_inn.analysis import recombine, samples
from posthoc_inn.analysis.samples import Samples
from posthoc_inn.app.answers import Answer, Card, Mark, Row, said_of
from posthoc_inn.app.fitted import FittedLayer, Shown, told_elsewhere

MOST = 16
"""Samples at the most: more are slow, and say no more."""


def look(layer: FittedLayer, shown: Shown, *, count: int = 8, seed: int = 0) -> Answer:
    """Return a picture, its reconstruction, and samples with what the layer sees of it.

    Args:
        layer: Whose z is kept.
        shown: The picture.
        count: Samples, from 1 to `MOST`; brought into that range.
        seed: Of v.

    Raises:
        PosthocInnError: The picture cannot be used.
    """
    given = layer.given(shown)
    with told_elsewhere():
        found = samples(layer.pipeline, given, min(max(int(count), 1), MOST), max(0, int(seed)), layer.classes)
    pipeline = layer.pipeline
    own, again = (
        said_of(layer, pipeline.ask(given))[0],
        said_of(layer, pipeline.ask_model(found.reconstructions)[1], pipeline.ask(given))[0],
    )
    drawn = said_of(layer, pipeline.ask_model(found.pictures[0])[1], pipeline.ask(given))
    first = (
        Card(found.inputs[0], "the picture", own.text),
        Card(found.reconstructions[0], "reconstructed", again.text, again.mark),
    )
    cards = tuple(
        Card(picture, f"sample {k}", said.text, said.mark)
        for k, (picture, said) in enumerate(zip(found.pictures[0], drawn, strict=True), 1)
    )
    rows = Row("", first), Row("Samples: nearly the same to this layer", cards)
    return Answer(rows, told(found), (*layer.doubts(shown), *layer.warnings))


def told(found: Samples) -> tuple[str, ...]:
    """Return what is measured of the samples of one picture, in sentences."""
    sentences = []
    if found.agreement is not None:
        same = round(found.agreement * found.samples)
        sentences.append(f"The model predicts the same for {same} of {found.samples} samples as for the picture.")
    if found.output_similarity is not None:
        sentences.append(
            f"The model's output for the samples has a cosine similarity of {found.output_similarity:.2f} to that for "
            "the picture."
        )
    if found.similarity is not None:
        sentences.append(
            f"At the layer, the samples have a cosine similarity of {found.similarity:.2f} to the picture (1: the "
            "same)."
        )
    return tuple(sentences)


def mix(layer: FittedLayer, shown: Shown, other: Shown) -> Answer:
    """Return z of one picture with v of the other, and the other way round.

    Raises:
        PosthocInnError: A picture cannot be used.
    """
    given = layer.given(shown, other)
    with told_elsewhere():
        found = recombine(layer.pipeline, given, class_names=layer.classes)
    pipeline = layer.pipeline
    own = pipeline.ask(given)
    names = "the picture", "the other"
    rows = []
    for i, name in enumerate(names):
        said = said_of(layer, pipeline.ask_model(found.pictures[i])[1], own[i : i + 1])
        order = (i, 1 - i)
        marks: list[Mark] = ["", said[1 - i].mark]
        cards = [
            Card(found.z_images[i], name, said_of(layer, own[i : i + 1])[0].text),
            *(
                Card(found.pictures[i, j], title, said[j].text, mark)
                for j, title, mark in zip(order, ("with its own v", f"with v of {names[1 - i]}"), marks, strict=True)
            ),
        ]
        rows.append(Row(f"What the layer sees (z) of {name}", tuple(cards)))
    return Answer(tuple(rows), (), layer.doubts(shown, other))
