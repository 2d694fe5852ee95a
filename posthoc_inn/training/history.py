"""What happened during one training run: a table that survives checkpoints, and a verdict in plain words."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from posthoc_inn.training.curve import gain_of_doubling

Verdict = Literal["converged", "still improving", "overfitting", "diverged"]


@dataclass
class History:
    """The curve of one training run.

    Attributes:
        rows: One per look at held-out data: step, train, held_out (losses), lr, gradient_norm.
        best_step: Step whose weights are kept.
        best_loss: Its held-out loss.
        skipped: Steps left out because a loss or gradient was not finite.
        stopped: Why the run ended: "finished" or "early" (patience ran out); "" while it goes on.
        seconds: Time spent training, over all sessions of a resumed run.

    >>> history = History()
    >>> for step, loss in enumerate([3.0, 2.0, 1.9, 1.9]):
    ...     _ = history.add(step=step, train=loss, held_out=loss + 0.1, lr=1e-3, gradient_norm=1.0)
    >>> history.best_step, round(history.best_loss, 1)
    (2, 2.0)
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    best_step: int = -1
    best_loss: float = math.inf
    skipped: int = 0
    stopped: str = ""
    seconds: float = 0.0

    def add(
        self,
        *,
        step: int,
        train: float,
        held_out: float,
        lr: float,
        gradient_norm: float,
        **more: float,
    ) -> bool:
        """Append a row; return whether its held-out loss is the best so far."""
        self.rows.append(
            {
                "step": step,
                "train": train,
                "held_out": held_out,
                "lr": lr,
                "gradient_norm": gradient_norm,
                **more,
            }
        )
        if math.isfinite(held_out) and held_out < self.best_loss:
            self.best_step, self.best_loss = step, held_out
            return True
        return False

    @property
    def looks_since_best(self) -> int:
        """Looks at held-out data since the best one."""
        return sum(row["step"] > self.best_step for row in self.rows) if self.rows else 0

    def expected_gain(self) -> float:
        """Return by how much twice the steps are expected to lower the held-out loss; see `gain_of_doubling`.

        0 where patience ran out; nan where there are too few looks.
        """
        if self.stopped == "early" or not self.rows:
            return 0.0
        columns = ([row[name] for row in self.rows] for name in ("step", "lr", "held_out"))
        return gain_of_doubling(*columns)

    def verdict(self, *, tolerance: float, error: float = 0.0) -> Verdict:
        """Judge the run by its held-out curve.

        Args:
            tolerance: Change of the held-out loss, in its own units, that does not matter.
            error: Standard error of the held-out loss.

        Returns:
            "diverged" when the last loss is not finite or much worse than the first; "overfitting" when the
            held-out loss had risen by more than `tolerance` and `error` above its best at the end while the training
            loss fell; "still improving" when twice the steps are expected to gain more than `tolerance`
            (`expected_gain`), or, of a run with too few looks to tell, when the last look gained as much; else
            "converged".
        """
        if not self.rows:
            return "diverged"
        last, first = self.rows[-1]["held_out"], self.rows[0]["held_out"]
        if not math.isfinite(last) or last > max(first, self.best_loss) + 100 * tolerance:
            return "diverged"
        best = next(row for row in self.rows if row["step"] == self.best_step)
        if last > self.best_loss + tolerance + error and self.rows[-1]["train"] < best["train"]:
            return "overfitting"
        gain = self.expected_gain()
        if math.isnan(gain):
            gain = self.rows[-2]["held_out"] - last if len(self.rows) > 1 else 0.0
        return "still improving" if gain > tolerance else "converged"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> History:
        """Build from plain data."""
        return cls(**data)
