"""Attack: a picture changed a little against the model, and what each layer sees of it."""

from __future__ import annotations

import math
from typing import Literal

from posthoc_inn.analysis import attack_view
from posthoc_inn.analysis.attack import AttackView
from posthoc_inn.analysis.comparable import class_name
from posthoc_inn.app.answers import Answer, Card, Row, percent
from posthoc_inn.app.fitted import FittedLayer, Opened, Shown, told_elsewhere

LEVELS = 255
"""Steps from black to white, of which the strength is so many."""
STRONGEST = 64


def attack(
    opened: Opened,
    layer: FittedLayer,
    shown: Shown,
    *,
    method: Literal["fgsm", "pgd"] = "fgsm",
    levels: float = 8,
    seed: int = 0,
) -> Answer:
    """Return the attacked picture, what the model says of it, and what each layer of the model sees of it.

    Args:
        opened: All layers: those of the same model and autoencoder are shown.
        layer: One of them.
        shown: The picture.
        method: Which attack.
        levels: Largest change of a pixel, of 255; from 1 to `STRONGEST`, brought into that range.
        seed: Of pgd's start, and of the random signs that the attack is compared with.

    Raises:
        PluginError: captum is not there.
        ConfigError: The model gives no classes.
        PosthocInnError: The picture cannot be used.
    """
    epsilon = min(max(float(levels), 1.0), float(STRONGEST)) / LEVELS
    layers = opened.beside(layer)
    with told_elsewhere():
        found = attack_view(
            {name: one.pipeline for name, one in layers.items()},
            layer.given(shown),
            method=method,
            epsilon=epsilon,
            seed=max(0, int(seed)),
            class_names=layer.classes,
        )
    own = found.clean_predictions[0]

    def card(picture: object, title: str, label: int, chance: float, *, is_own: bool = False) -> Card:
        mark = "" if is_own else "same" if label == own else "other"
        return Card(picture, title, percent(class_name(label, found.class_names), chance), mark)  # type: ignore[arg-type]

    model = (
        card(found.clean[0], "the picture", own, found.clean_probabilities[0], is_own=True),
        card(found.attacked[0], "attacked", found.attacked_predictions[0], found.attacked_probabilities[0]),
        Card((0.5 + 0.5 / epsilon * (found.attacked - found.clean))[0].clamp(0, 1), "the change, enlarged"),
    )
    seen = (
        card(
            found.reconstruction[0],
            "reconstructed",
            found.reconstructed_predictions[0],
            found.reconstructed_probabilities[0],
        ),
        *(
            card(one.decoded[0], name, one.predictions[0], one.probabilities[0])
            for name, one in zip(layers, found.layers, strict=True)
        ),
    )
    rows = Row("What the model gets", model), Row("What each layer sees of the attacked picture", seen)
    return Answer(rows, told(found), layer.doubts(shown))


def told(found: AttackView) -> tuple[str, ...]:
    """Return what an attack on one picture did, in sentences."""
    if found.unmoved:
        return ("The picture could not be attacked: the model's gradient there is zero.",)
    did = "changed" if found.changed else "did not change"
    noise = "changed" if found.changed_by_noise else "did not change"
    sentences = [
        f"The attack {did} the model's prediction. Random changes of the same size {noise} it.",
        *(
            f"{one.layer}: the attack moves the latent {_times(one.moved_latent, one.moved_latent_by_noise)} as far as "
            "random changes do."
            for one in found.layers
        ),
    ]
    return tuple(sentences)


def _times(moved: float, by_noise: float) -> str:
    if by_noise <= 0:
        return "more than a hundred times" if moved > 0 else "just"
    return f"{math.sqrt(moved / by_noise):.1f} times"
