"""What an adversarial attack does to each layer: the attacked z decoded with the clean image's v (MSC 4.3, fig. 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from posthoc_inn.analysis.adversarial import Attack, attack_images, check_labels, random_signs
from posthoc_inn.analysis.comparable import (
    as_given,
    check_comparable,
    check_gives_classes,
    class_name,
    classify,
    contexts,
    to_canonical,
)
from posthoc_inn.analysis.invariance import ExplainedByInvariances, explained_by_invariances
from posthoc_inn.analysis.results import Result, share_with_error
from posthoc_inn.errors import ConfigError
from posthoc_inn.pipeline import Pipeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 6
"""Images in a figure."""


@dataclass(frozen=True)
class AttackedLayer(Result):
    """What the attack did to one layer.

    Attributes:
        layer: Its name.
        explained: Share of the latent's variance that v explains (MSC eq. 19); None when there was one image only.
        predictions: What the model predicts for each decoding D(t⁻¹(v given z*)).
        probabilities: With which probability.
        as_attacked: Of the images whose prediction the attack changed, the share whose decoding the model calls what
            it calls the attacked image: the picture shows what the attack did. nan when it changed none.
        as_attacked_error: Its standard error over images.
        as_clean: The share of these whose decoding it still calls what it calls the clean image.
        as_clean_error: Its standard error.
        moved_image: Mean squared difference of the decodings of z* and z with the same v, images in [0, 1].
        moved_image_error: Its standard error.
        moved_latent: Mean squared difference of t⁻¹(v given z*) and t⁻¹(v given z), per dimension of z_bar.
        moved_latent_error: Its standard error.
        moved_image_by_noise: `moved_image` for random signs of the attack's size instead of the attack.
        moved_latent_by_noise: `moved_latent` likewise.
        round_trip: Largest |t⁻¹(v given z) - E(x)|; the decoding of the clean z is the reconstruction, up to this.
        decoded: The decodings (B, C, H, W) in [0, 1].
    """

    layer: str
    explained: ExplainedByInvariances | None
    predictions: tuple[int, ...]
    probabilities: tuple[float, ...]
    as_attacked: float
    as_attacked_error: float
    as_clean: float
    as_clean_error: float
    moved_image: float
    moved_image_error: float
    moved_latent: float
    moved_latent_error: float
    moved_image_by_noise: float
    moved_latent_by_noise: float
    round_trip: float
    decoded: Tensor = field(repr=False, compare=False)


@dataclass(frozen=True)
class AttackView(Result):
    """An attack on images, seen through layers (MSC fig. 5).

    Attributes:
        attack: Its settings.
        images: B.
        labels: The classes the attack leads away from, or towards when it is targeted.
        clean_predictions: What the model predicts for the images; `clean_probabilities` with which probability.
        clean_probabilities: See there.
        attacked_predictions: The same for the attacked images.
        attacked_probabilities: See there.
        reconstructed_predictions: The same for reconstructions D(E(x)): what the autoencoder alone changes.
        reconstructed_probabilities: See there.
        changed: Share of images whose prediction the attack changed.
        changed_error: Its standard error over images.
        changed_by_noise: Share whose prediction random signs of the attack's size change.
        success: Share of images that the attack brought to where it should: away from their label, of those the model
            gave that label; to the target, of those that were not there. nan when there was no such image.
        success_error: Its standard error.
        unmoved: Images that the attack left as they were, because the model's gradient there is exactly zero.
        between_images: Mean squared difference of reconstructions of different images, to compare `moved_image` with.
        between_latents: The same of their z_bar, for `moved_latent`.
        layers: In the order given.
        class_names: Names of the classes; empty for numbers.
        clean: Canonical images (B, C, H, W) at their own size.
        attacked: The same, attacked.
        reconstruction: D(E(x)), at the autoencoder's size.
    """

    attack: Attack
    images: int
    labels: tuple[int, ...]
    clean_predictions: tuple[int, ...]
    clean_probabilities: tuple[float, ...]
    attacked_predictions: tuple[int, ...]
    attacked_probabilities: tuple[float, ...]
    reconstructed_predictions: tuple[int, ...]
    reconstructed_probabilities: tuple[float, ...]
    changed: float
    changed_error: float
    changed_by_noise: float
    success: float
    success_error: float
    unmoved: int
    between_images: float
    between_latents: float
    layers: tuple[AttackedLayer, ...]
    class_names: tuple[str, ...]
    clean: Tensor = field(repr=False, compare=False)
    attacked: Tensor = field(repr=False, compare=False)
    reconstruction: Tensor = field(repr=False, compare=False)

    @property
    def caption(self) -> str:
        """What to conclude, and what not."""
        parts = [
            f"{self.attack.description} changed the model's prediction for {100 * self.changed:.0f} % of {self.images} "
            f"images. Random signs of the same size changed it for {100 * self.changed_by_noise:.0f} %."
        ]
        if self.unmoved:
            parts.append(f"{self.unmoved} could not be attacked: the model's gradient there is zero.")
        parts.append(
            "Each picture on the right combines what the layer sees of the attacked image with what it ignores of the "
            "clean one. If it still looks like the reconstruction, the attack has not reached what that layer holds; "
            "if it shows another class, it has."
        )
        for layer in self.layers:
            text = f"{layer.layer}:"
            if not math.isnan(layer.as_attacked):
                text += (
                    f" of the images whose prediction changed, the model calls {100 * layer.as_attacked:.0f} % of the "
                    f"decodings what it calls the attacked image, {100 * layer.as_clean:.0f} % what it calls the clean "
                    "one;"
                )
            parts.append(
                f"{text} the attack moves the latent by {math.sqrt(layer.moved_latent):.2g} (root mean square), random "
                f"signs by {math.sqrt(layer.moved_latent_by_noise):.2g}."
            )
        if not math.isnan(self.between_latents):
            parts.append(f"Different images are {math.sqrt(self.between_latents):.2g} apart.")
        parts.append(
            "A picture that did not change does not show that the layer is robust. The decoder draws pictures like "
            "those it was trained on, t was never trained on attacked images, and the reconstruction alone changes the "
            f"prediction for {100 * self._lost:.0f} % of the images."
        )
        return " ".join(parts)

    @property
    def _lost(self) -> float:
        pairs = zip(self.clean_predictions, self.reconstructed_predictions, strict=True)
        return sum(a != b for a, b in pairs) / self.images

    def figure(self, rows: int = SHOWN) -> Figure:
        """Draw MSC fig. 5 for the first `rows` images; predictions that differ from the clean one are red."""
        from posthoc_inn.drawing import INK, Column, grid, wrapped

        n = min(rows, self.images)
        gain = 0.5 / self.attack.epsilon

        def column(
            pictures: Tensor,
            heading: str,
            found: Sequence[int],
            chances: Sequence[float],
            footer: str = "",
            gap: bool = False,
        ) -> Column:
            names = (class_name(label, self.class_names) for label in found[:n])
            labels = [f"{name} {100 * chance:.0f} %" for name, chance in zip(names, chances, strict=False)]
            marked = [a != b for a, b in zip(found[:n], self.clean_predictions, strict=False)]
            return Column(pictures[:n], heading, labels, marked, footer=footer, gap=gap)

        columns = [
            column(self.clean, "clean", self.clean_predictions, self.clean_probabilities),
            column(self.attacked, "attacked", self.attacked_predictions, self.attacked_probabilities),
            Column((0.5 + gain * (self.attacked - self.clean))[:n], f"attack x {gain:.3g},\non grey"),
            column(
                self.reconstruction,
                "recon-\nstructed",
                self.reconstructed_predictions,
                self.reconstructed_probabilities,
                "explained by v:",
            ),
        ]
        for number, layer in enumerate(self.layers):
            share = "-" if layer.explained is None else f"{100 * layer.explained.value:.0f} %"
            columns.append(
                column(layer.decoded, wrapped(layer.layer), layer.predictions, layer.probabilities, share, number == 0)
            )
        return grid(
            columns,
            inch=0.86,
            heading_color=INK,
            note="On the right, for each layer: the attacked z with\nthe clean v, decoded. Below pictures: the\n"
            "model's prediction, in red if it is not that for the clean image.",
        )


def attack_view(
    pipelines: Mapping[str, Pipeline],
    images: Tensor,
    *,
    labels: Tensor | None = None,
    method: Literal["fgsm", "pgd"] = "fgsm",
    epsilon: float = 8 / 255,
    steps: int | None = None,
    step_size: float | None = None,
    target: int | Tensor | None = None,
    seed: int = 0,
    z: Mapping[str, Tensor] | None = None,
    samples: int = 10_000,
    class_names: Sequence[str] = (),
) -> AttackView:
    """Attack images and decode, for each layer, the attacked z with the clean v: D(t⁻¹(v given Φ(x*))).

    v = t(E(x) given Φ(x)) at the mean of the encoder (MSC 4.3; the paper prints D(t(v given z*)), its inverse is
    meant). The attack acts on images in [0, 1] at their own size; the model is left as it was.

    Args:
        pipelines: Layer -> fitted parts, of one model and one autoencoder; figures keep this order.
        images: As given to `fit`, (B, C, H, W).
        labels: Classes (B,) to lead away from; None for what the model itself predicts.
        method: "fgsm" (Goodfellow et al. 2015) or "pgd" (Madry et al. 2018, from a random start), of captum.
        epsilon: Largest change of a value, in units of [0, 1]; in (0, 1].
        steps: Of pgd; 10 if None.
        step_size: Of pgd, in units of [0, 1]; 2.5 epsilon / steps if None.
        target: Class, or classes (B,), to lead towards, instead of away from `labels`.
        seed: Of pgd's start, of the random signs, and of v in eq. 19.
        z: Layer -> representations of validation images (N, *z_shape) for eq. 19; None for those of `images`.
        samples: Draws for eq. 19 in all.
        class_names: Names of the classes, for the figure.

    Raises:
        ConfigError: A setting is out of range, the layers cannot be compared, or the model gives no class scores.
        DataError: `images` do not lie in [0, 1].
        ShapeError: A tensor has another shape.
        PluginError: captum is not installed.
    """
    first = check_comparable(pipelines, "attack_view")
    check_gives_classes(first, "attack_view")
    attack = Attack.of(method, epsilon, steps, step_size, target is not None, seed)
    if labels is not None and target is not None:
        raise ConfigError("attack_view: give labels (to lead away from) or target (to lead towards), not both.")
    if z is not None and (missing := [name for name in pipelines if name not in z]):
        raise ConfigError(f"attack_view: z has no representations for {', '.join(map(repr, missing))}.")
    clean = to_canonical(first.adapter, images)
    output = first.predict(as_given(first.adapter, clean))
    own, chance = classify(output, "attack_view")
    wanted = labels if target is None else target
    aim = (
        own
        if wanted is None
        else check_labels(wanted, len(clean), output.shape[1], "labels" if target is None else "target")
    )
    return _view(
        pipelines,
        clean,
        attack,
        own=own,
        chance=chance,
        aim=aim,
        z=z,
        samples=samples,
        seed=seed,
        class_names=class_names,
    )


def _view(
    pipelines: Mapping[str, Pipeline],
    clean: Tensor,
    attack: Attack,
    *,
    own: Tensor,
    chance: Tensor,
    aim: Tensor,
    z: Mapping[str, Tensor] | None,
    samples: int,
    seed: int,
    class_names: Sequence[str],
) -> AttackView:
    """Attack canonical images (B, C, H, W), of which the model predicts `own` (B,) with `chance` (B,)."""
    first = next(iter(pipelines.values()))
    attacked = attack_images(first, clean, aim, attack)
    noisy = (clean + attack.epsilon * random_signs(clean, seed)).clamp(0, 1)

    given, given_attacked, given_noisy = (as_given(first.adapter, x) for x in (clean, attacked, noisy))
    found, found_chance = classify(first.predict(given_attacked), "attack_view")
    by_noise, _ = classify(first.predict(given_noisy), "attack_view")
    z_bar = first.encode(given)[0]
    reconstruction = first.decode(z_bar).cpu()
    again, again_chance = classify(first.ask_model(reconstruction)[1], "attack_view")
    changed, changed_error = _share(found != own)
    at_risk = own != aim if attack.targeted else own == aim
    reached = found == aim if attack.targeted else found != aim
    success, success_error = _share(reached[at_risk])
    layers = tuple(
        _attacked_layer(
            name,
            pipeline,
            z_bar,
            (given, given_attacked, given_noisy),
            own=own,
            found=found,
            z=None if z is None else z[name],
            samples=samples,
            seed=seed,
        )
        for name, pipeline in pipelines.items()
    )
    return AttackView(
        attack=attack,
        images=len(clean),
        labels=tuple(aim.tolist()),
        clean_predictions=tuple(own.tolist()),
        clean_probabilities=tuple(chance.tolist()),
        attacked_predictions=tuple(found.tolist()),
        attacked_probabilities=tuple(found_chance.tolist()),
        reconstructed_predictions=tuple(again.tolist()),
        reconstructed_probabilities=tuple(again_chance.tolist()),
        changed=changed,
        changed_error=changed_error,
        changed_by_noise=_share(by_noise != own)[0],
        success=success,
        success_error=success_error,
        unmoved=int((attacked == clean).flatten(1).all(1).sum()),
        between_images=_between(reconstruction),
        between_latents=_between(z_bar),
        layers=layers,
        class_names=tuple(class_names),
        clean=clean.cpu(),
        attacked=attacked.cpu(),
        reconstruction=reconstruction,
    )


def _attacked_layer(
    name: str,
    pipeline: Pipeline,
    z_bar: Tensor,
    given: tuple[Tensor, Tensor, Tensor],
    *,
    own: Tensor,
    found: Tensor,
    z: Tensor | None,
    samples: int,
    seed: int,
) -> AttackedLayer:
    clean, attacked, noisy = (contexts(pipeline, x) for x in given)
    v = pipeline.invariances(z_bar, clean)[0][:, None]
    latents = [pipeline.sample_latents(context, v)[:, 0] for context in (clean, attacked, noisy)]
    pictures = [pipeline.decode(part).cpu() for part in latents]
    asked, chance = classify(pipeline.ask_model(pictures[1])[1], "attack_view")
    changed = found != own
    as_attacked, as_attacked_error = _share((asked == found)[changed])
    as_clean, as_clean_error = _share((asked == own)[changed])
    moved_image, moved_image_error = share_with_error(_apart(pictures[1], pictures[0]))
    moved_latent, moved_latent_error = share_with_error(_apart(latents[1], latents[0]))
    explained = None
    if z is not None or len(z_bar) > 1:
        shown = pipeline.features(given[0][: max(2, samples // 20)]) if z is None else z
        explained = explained_by_invariances(pipeline, shown, samples=samples, seed=seed)
    return AttackedLayer(
        layer=name,
        explained=explained,
        predictions=tuple(asked.tolist()),
        probabilities=tuple(chance.tolist()),
        as_attacked=as_attacked,
        as_attacked_error=as_attacked_error,
        as_clean=as_clean,
        as_clean_error=as_clean_error,
        moved_image=moved_image,
        moved_image_error=moved_image_error,
        moved_latent=moved_latent,
        moved_latent_error=moved_latent_error,
        moved_image_by_noise=math.fsum(_apart(pictures[2], pictures[0])) / len(z_bar),
        moved_latent_by_noise=math.fsum(_apart(latents[2], latents[0])) / len(z_bar),
        round_trip=float((latents[0] - z_bar.to(latents[0])).abs().max()),
        decoded=pictures[1],
    )


def _apart(a: Tensor, b: Tensor) -> list[float]:
    """Return the mean squared difference of each row."""
    apart: list[float] = (a - b).double().square().flatten(1).mean(1).tolist()
    return apart


def _between(rows: Tensor) -> float:
    """Return the mean squared difference of two different rows: twice their variance."""
    return 2 * float(rows.double().var(dim=0, unbiased=True).mean()) if len(rows) > 1 else math.nan


def _share(hits: Tensor) -> tuple[float, float]:
    return share_with_error(hits.double().tolist()) if len(hits) else (math.nan, math.nan)
