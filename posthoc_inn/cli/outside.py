"""What the commands say of images that the layer sees as unlike those of the fit."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posthoc_inn.errors import OutsideWarning

if TYPE_CHECKING:
    from torch import Tensor

    from posthoc_inn.analysis import Outside
    from posthoc_inn.interpreter import Interpreter


@dataclass(frozen=True)
class Look:
    """What was found.

    Attributes:
        found: Image by image; None for a bundle that cannot tell.
        line: What to print, or "".
    """

    found: Outside | None
    line: str

    @classmethod
    def at(cls, interpreter: Interpreter, data: Any, seed: int) -> Look:
        """Look at some images of a data set, which are told by their numbers."""
        from posthoc_inn.analysis import outside_of

        found = outside_of(interpreter.pipeline, data, seed=seed)
        told = "" if found is None else found.told
        return cls(found, f"Warning: {told}" if told else "")

    @property
    def facts(self) -> dict[str, Any] | None:
        """What `--json` says of a data set: how many were looked at, and those that are outside."""
        if self.found is None:
            return None
        outside = [image.to_dict() for image in self.found.each if image.is_outside]
        return {"looked_at": self.found.looked_at, "images": outside}

    def each(self, count: int) -> list[dict[str, Any]]:
        """Return for each image what `--json` says: nothing known is null."""
        names = ("is_outside", "times", "rank", "clipped")
        if self.found is None:
            return [dict.fromkeys(names)] * count
        return [{name: getattr(image, name) for name in names} for image in self.found.each]

    @contextlib.contextmanager
    def told_once(self) -> Iterator[None]:
        """Keep the library from warning of the same images by their numbers."""
        with warnings.catch_warnings():
            if self.found is not None:
                warnings.simplefilter("ignore", OutsideWarning)
            yield


def look_outside(interpreter: Interpreter, images: Tensor, names: Sequence[str]) -> Look:
    """Look at the images of a command, (B, C, H, W), which are told by their names."""
    found = interpreter.outside(images)
    told = "" if found is None else found.told_by(names)
    return Look(found, f"Warning: {told}" if told else "")
