"""Compare: samples of two models or two layers side by side, drawn with the same v."""

from __future__ import annotations

from posthoc_inn.app.answers import Answer, Card, Row
from posthoc_inn.app.fitted import FittedLayer, Shown
from posthoc_inn.app.parts.look import look


def compare(left: FittedLayer, right: FittedLayer, shown: Shown, *, count: int = 6, seed: int = 0) -> Answer:
    """Return what `look` shows of both, a row each.

    Args:
        left: One fitted layer.
        right: Another one, of the same model or of another.
        shown: The picture.
        count: Samples of each.
        seed: Of v, which are the same for both where both have as many.

    Raises:
        PosthocInnError: The picture cannot be used.
    """
    rows, told, doubts = [], [], []
    for layer in (left, right):
        answer = look(layer, shown, count=count, seed=seed)
        first, drawn = answer.rows
        cards: tuple[Card, ...] = (*first.cards, *drawn.cards)
        rows.append(Row(layer.name, cards))
        told += [f"{layer.name}: {sentence}" for sentence in answer.told]
        doubts += [f"{layer.name}: {doubt}" for doubt in answer.doubts]
    if left.pipeline.latent_dim != right.pipeline.latent_dim:
        told.append("Their codes have different sizes: v are drawn for each by itself.")
    return Answer(tuple(rows), tuple(told), tuple(doubts))
