"""Adversarial images through captum's FGSM and PGD, on pixels in [0, 1]; the attacked model is left as it was."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from posthoc_inn.analysis.comparable import ROWS, as_given, log_probabilities
from posthoc_inn.analysis.optional import require
from posthoc_inn.analysis.results import Result
from posthoc_inn.errors import ConfigError, Problems, ShapeError, is_count
from posthoc_inn.features.isolation import device_generators
from posthoc_inn.generators import GENERATORS
from posthoc_inn.pipeline import Pipeline

Method = Literal["fgsm", "pgd"]


@dataclass(frozen=True)
class Attack(Result):
    """Settings of an attack.

    Attributes:
        method: "fgsm" or "pgd".
        epsilon: Largest change of a value, in units of [0, 1].
        steps: Gradient steps; 1 for fgsm.
        step_size: Change of a value in a step, in units of [0, 1].
        targeted: Whether it leads towards a class instead of away from one.
        seed: Of pgd's random start.

    >>> Attack.of("pgd", 0.1, steps=5).step_size
    0.05
    """

    method: Method
    epsilon: float
    steps: int
    step_size: float
    targeted: bool
    seed: int

    @classmethod
    def of(
        cls,
        method: Method = "fgsm",
        epsilon: float = 8 / 255,
        steps: int | None = None,
        step_size: float | None = None,
        targeted: bool = False,
        seed: int = 0,
    ) -> Attack:
        """Return the settings, with what is None filled in.

        Raises:
            ConfigError: Something is out of range; all problems at once.
        """
        problems = Problems("attack")
        problems.check(method in ("fgsm", "pgd"), f"method must be 'fgsm' or 'pgd', got {method!r}")
        problems.check(
            _is_number(epsilon) and 0 < epsilon <= 1,
            f"epsilon must be in (0, 1], in units of [0, 1] (8 of 255 levels are 8 / 255), got {epsilon!r}",
        )
        if method == "fgsm":
            problems.check(steps is None and step_size is None, "steps and step_size are for pgd; fgsm takes one step")
        problems.check(
            steps is None or is_count(steps, 1),
            f"steps must be a whole number of at least 1, got {steps!r}",
        )
        problems.check(
            step_size is None or (_is_number(step_size) and 0 < step_size <= 1),
            f"step_size must be in (0, 1], in units of [0, 1], got {step_size!r}",
        )
        problems.raise_if_any()
        if method == "fgsm":
            return cls(method, float(epsilon), 1, float(epsilon), targeted, seed)
        count = steps or 10
        # Madry et al. 2018: enough to cross the ball and to come back.
        return cls(method, float(epsilon), count, float(step_size or min(1.0, 2.5 * epsilon / count)), targeted, seed)

    @property
    def description(self) -> str:
        """The attack in words."""
        kind = "FGSM" if self.method == "fgsm" else f"PGD, {self.steps} steps of {self.step_size:.3g},"
        towards = "towards a class" if self.targeted else "away from a class"
        return f"An attack {towards} ({kind} at most {self.epsilon:.3g} a value, which goes from 0 to 1)"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_labels(labels: int | Tensor, rows: int, classes: int, name: str) -> Tensor:
    """Return classes (B,), int64 on the CPU.

    Raises:
        ShapeError: They are no whole numbers, or not one per image.
        ConfigError: There is no such class.
    """
    found = torch.as_tensor(labels).detach().cpu()
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise ShapeError(f"{name} must be whole numbers, the classes, got {found.dtype}.")
    if found.ndim == 0:
        found = found.expand(rows)
    if found.shape != (rows,):
        raise ShapeError(f"{name} must be one class, or one for each of {rows} images, got {tuple(found.shape)}.")
    if int(found.min()) < 0 or int(found.max()) >= classes:
        raise ConfigError(
            f"{name} must be classes from 0 to {classes - 1}, got {int(found.min())} to {int(found.max())}."
        )
    return found.long()


def attack_images(pipeline: Pipeline, canonical: Tensor, labels: Tensor, attack: Attack) -> Tensor:
    """Return attacked images (B, C, H, W) in [0, 1], on the pipeline's device.

    Args:
        pipeline: Reaches the model.
        canonical: Images in [0, 1] at their own size (see `to_canonical`).
        labels: Classes (B,) to lead away from, or towards when the attack is targeted.
        attack: Its settings.

    Raises:
        PluginError: captum is not installed.
    """
    robust = require("captum.robust", "attack", "An attack")

    def forward(images: Tensor) -> Tensor:
        given = as_given(pipeline.adapter, images)
        return pipeline.extractor.predict(pipeline.adapter.to_model(given))

    parts = []
    # captum turns gradients on itself; inside inference mode that would have no effect.
    with torch.inference_mode(False), _private_generator(pipeline.device, attack.seed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Input Tensor .* did not already require gradients")
        for images, aim in zip(canonical.split(ROWS), labels.split(ROWS), strict=True):
            start = images.to(pipeline.device).detach().clone()
            if attack.method == "fgsm":
                fgsm = robust.FGSM(forward, log_odds_against, lower_bound=0.0, upper_bound=1.0)
                # Below its default, 1e-6, captum takes a gradient for zero and leaves the pixel alone.
                fgsm.zero_thresh = 0.0
                found = fgsm.perturb(start, attack.epsilon, target=aim.clone(), targeted=attack.targeted)
            else:
                pgd = robust.PGD(forward, log_odds_against, lower_bound=0.0, upper_bound=1.0)
                pgd.fgsm.zero_thresh = 0.0
                found = pgd.perturb(
                    start,
                    attack.epsilon,
                    attack.step_size,
                    attack.steps,
                    target=aim.clone(),
                    targeted=attack.targeted,
                    random_start=True,
                )
            parts.append(found.detach())
    return torch.cat(parts)


def log_odds_against(output: Tensor, labels: Tensor) -> Tensor:
    """Return log((1 - p) / p), shape (B,), p being the probability of the label.

    Its gradient is that of the cross-entropy, -log p, divided by 1 - p: the same signs, which are all that these
    attacks use, without vanishing where the model is sure of the label.
    """
    scores, index = log_probabilities(output), labels[:, None]
    return scores.scatter(1, index, -math.inf).logsumexp(1) - scores.gather(1, index)[:, 0]


@contextmanager
def _private_generator(device: torch.device, seed: int) -> Iterator[None]:
    """Let captum, which draws from the global generator of `device`, draw from one of our own."""
    getter, setter = device_generators(device) or (torch.get_rng_state, torch.set_rng_state)
    with GENERATORS:
        before = getter()
        setter(torch.Generator(device).manual_seed(seed).get_state())
        try:
            yield
        finally:
            setter(before)


def random_signs(like: Tensor, seed: int) -> Tensor:
    """Return -1 or 1 for every value of `like`, by chance."""
    bits = torch.randint(2, like.shape, generator=torch.Generator().manual_seed(seed))
    return (2 * bits - 1).to(like)
