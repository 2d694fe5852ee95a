"""What a fit is asked for: the one set of arguments that Python, sweeps and the command line share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from posthoc_inn.concepts import ConceptModel
from posthoc_inn.config import AutoencoderConfig, FitConfig, ImageSpec, Precision
from posthoc_inn.errors import Problems, is_count, suggest
from posthoc_inn.features import LayerExtractor


@dataclass(frozen=True)
class Subject:
    """What is explained, and with what: all that an `Interpreter` is made with; see there for the attributes.

    Attributes:
        extractor: Φ and Ψ of the model, cut at the layer.
        config: Sizes and steps of everything.
    """

    extractor: LayerExtractor
    config: FitConfig
    spec: ImageSpec | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    autoencoder: nn.Module | AutoencoderConfig | None = None
    concept_model: ConceptModel | None = None
    image_size: int | None = None
    device: str = "auto"
    precision: Precision = "auto"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """The arguments of `Interpreter.fit`; see there.

    >>> request = FitRequest(data=None, steps=5, epochs=2)
    >>> request.check()
    Traceback (most recent call last):
    ...
    posthoc_inn.errors.ConfigError: fit: give epochs or steps, not both
    """

    data: Any = field(repr=False)
    held_out: Any = field(default=0.1, repr=False)
    concepts: Any = field(default=None, repr=False)
    held_out_concepts: Any = field(default=None, repr=False)
    concept_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    draws: int = 1
    epochs: float | None = None
    steps: int | None = None
    autoencoder_steps: int | None = None
    concept_steps: int | None = None
    refits: int = 0
    image_metrics: tuple[str, ...] = ()
    out: str | Path | None = None
    resume: bool = False
    evaluate: bool = True

    @classmethod
    def of(cls, data: Any, arguments: Mapping[str, Any]) -> FitRequest:
        """Return the request with these arguments.

        Raises:
            ConfigError: There is no such argument.
        """
        known = [f.name for f in dataclasses.fields(cls) if f.name != "data"]
        problems = Problems("fit")
        for name in arguments:
            problems.check(name in known, f"there is no argument {name!r}. {suggest(name, known)}")
        problems.raise_if_any()
        return cls(data=data, **arguments)

    @property
    def directory(self) -> Path | None:
        """Where checkpoints and cached rows go; None for nowhere."""
        return None if self.out is None else Path(self.out)

    def check(self, subject: Subject | None = None) -> None:
        """Check everything that can be wrong with the arguments themselves, and with what they are asked of.

        Raises:
            ConfigError: All problems at once.
        """
        problems = Problems("fit")
        for name in ("steps", "autoencoder_steps", "concept_steps"):
            value = getattr(self, name)
            problems.check(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        problems.check(self.epochs is None or self.epochs > 0, f"epochs must be positive, got {self.epochs}")
        problems.check(self.epochs is None or self.steps is None, "give epochs or steps, not both")
        problems.check(self.draws >= 1, f"draws must be at least 1, got {self.draws}")
        problems.check(is_count(self.refits, 0), f"refits must be a whole number of at least 0, got {self.refits!r}")
        problems.check(
            self.evaluate or self.refits in (0, False), "refits are there to be measured: leave out evaluate=False"
        )
        problems.check(not self.resume or self.out is not None, "resume needs out, the directory to go on from")
        if subject is not None:
            has_both = self.concepts is not None and subject.concept_model is not None
            problems.check(
                not has_both,
                "concepts asks for a new e, and a trained one was given as concept_model; give one of the two",
            )
            problems.check(
                subject.spec is None or (subject.mean is None and subject.std is None),
                "give spec (images in [0, 1]) or mean and std (images as the model takes them), not both",
            )
            problems.check((subject.mean is None) == (subject.std is None), "mean and std go together")
        problems.raise_if_any()
