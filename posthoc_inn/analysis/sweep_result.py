"""What was measured at several layers, checkpoints or models with one autoencoder and one e (MSC 4.2, fig. 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from posthoc_inn import drawing
from posthoc_inn.analysis.results import Result
from posthoc_inn.concepts import RANDOM, RESIDUAL
from posthoc_inn.errors import ConfigError, DataError, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class SweepPoint(Result):
    """What was measured at one layer, checkpoint or model.

    Attributes:
        name: Of the point.
        position: Number of steps, or place in the list.
        layer: The layer.
        accuracy: Of the model, on held-out images; None where it has none.
        held_out: Nats of t on held-out images.
        agreement: Share of samples for which the model predicts the class, or exactly the labels, of their image.
        explained_by_invariances: MSC eq. 19.
        concepts: Name -> {total_effect, first_order, interaction} of z (MSC eq. 20), with their errors.
        output_similarity: Cosine similarity of the model's output for samples to that for their image, of embeddings.
    """

    name: str
    position: float
    layer: str
    accuracy: float | None
    held_out: float
    agreement: float | None
    explained_by_invariances: float
    concepts: Mapping[str, Mapping[str, Any]]
    output_similarity: float | None = None

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> SweepPoint:
        """Return what a job's result says."""
        relevance = (result.get("concepts") or {}).get("relevance") or {"concepts": []}
        return cls(
            name=result["name"],
            position=float(result["position"]),
            layer=result["layer"],
            accuracy=result["accuracy"],
            held_out=result["likelihood"]["held_out"],
            agreement=result["faithfulness"]["agreement"],
            explained_by_invariances=result["explained_by_invariances"]["value"],
            concepts={c["name"]: c for c in relevance["concepts"]},
            output_similarity=result["faithfulness"].get("output_similarity"),
        )


@dataclass(frozen=True)
class SweepResult(Result):
    """A sweep over layers, checkpoints or models (MSC fig. 4).

    Attributes:
        points: In their order.
        axis: What the position is: "training step", "layer" or "model".
    """

    points: tuple[SweepPoint, ...]
    axis: str

    @property
    def concept_names(self) -> list[str]:
        """Concepts that were measured, residual and random ones left out."""
        names = self.points[0].concepts if self.points else {}
        return [n for n in names if n not in (RESIDUAL, RANDOM)]

    def share(self, concept: str, measure: str = "total_effect") -> list[float]:
        """Return a concept's share explained by z at each point.

        Raises:
            ConfigError: There is no such concept or measure.
        """
        try:
            return [float(p.concepts[concept][measure]["value"]) for p in self.points]
        except (KeyError, TypeError) as error:
            known = ", ".join(self.points[0].concepts) if self.points else "none"
            raise ConfigError(f"There is no {measure} of {concept!r}; measured are {known}.") from error

    def correlation_with_accuracy(self, concept: str, measure: str = "total_effect") -> float:
        """Return Pearson's correlation, over the points, of a concept's share with the model's accuracy."""
        pairs = [
            (s, p.accuracy)
            for s, p in zip(self.share(concept, measure), self.points, strict=True)
            if p.accuracy is not None
        ]
        if len(pairs) < 3:
            raise DataError("A correlation needs at least three points with an accuracy.")
        return float(torch.corrcoef(torch.tensor(pairs, dtype=torch.float64).T)[0, 1])

    @property
    def caption(self) -> str:
        """What to conclude, and what not."""
        return (
            f"Share of each concept's variance that the layer's z explains, by {self.axis}: solid, total effect (MSC "
            "eq. 20, the paper's measure); dotted, first-order share, which does not depend on how t uses v. If both "
            "are high, the representation knows the concept; if only the total effect is, look at t before you "
            "conclude anything. Points are separate fits of t: differences smaller than the error bars say nothing."
        )

    def table(self) -> str:
        """Return a Markdown table: a row a point, total effect and first-order share in per cent."""
        columns = {self.axis: [_cell(p.name) for p in self.points]}
        columns["accuracy"] = [_percent(p.accuracy) for p in self.points]
        for name in self.concept_names:
            shares = zip(self.share(name), self.share(name, "first_order"), strict=True)
            columns[f"{_cell(name)}, total / first"] = [
                f"{_percent(total)} / {_percent(first)}" for total, first in shares
            ]
        columns["explained by v"] = [_percent(p.explained_by_invariances) for p in self.points]
        columns["t, nats"] = [f"{p.held_out:.1f}" for p in self.points]
        columns["agreement"] = [_percent(p.agreement) for p in self.points]
        similar = [p.output_similarity for p in self.points]
        columns["cosine of outputs"] = ["" if s is None else f"{s:.3f}" for s in similar]
        # A column without any value says nothing: not every model is a classifier.
        columns = {title: cells for title, cells in columns.items() if any(cells)}
        rows = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)

    def figure(self, ax: Axes | None = None) -> Figure:
        """Draw the shares of every concept over the points, and the accuracy where there is one (MSC fig. 4)."""
        figure, ax = drawing.axes(ax, 7.2, 3.9)
        is_named = self.axis != "training step"
        x = list(range(len(self.points))) if is_named else [p.position for p in self.points]
        for color, name in zip(drawing.PALETTE, self.concept_names, strict=False):
            legend = drawing.as_label(name)
            shares = [p.concepts[name]["total_effect"] for p in self.points]
            value = [100 * s["value"] for s in shares]
            error = [100 * s["standard_error"] for s in shares]
            ax.errorbar(
                x, value, yerr=error, color=color, linewidth=1.8, marker="o", markersize=3.5, capsize=2, label=legend
            )
            ax.plot(x, [100 * v for v in self.share(name, "first_order")], color=color, linewidth=1.2, linestyle=":")
        ax.set(xlabel=drawing.as_label(self.axis), ylabel="explained by z, % of the concept's variance")
        drawing.plain(ax)
        if is_named:
            ax.set_xticks(x, [drawing.as_label(p.name) for p in self.points], rotation=25, ha="right")
        accuracies = [p.accuracy for p in self.points]
        handles, labels = ax.get_legend_handles_labels()
        if all(a is not None for a in accuracies) and len(set(accuracies)) > 1:
            twin = ax.twinx()
            (line,) = twin.plot(
                x, [100 * (a or 0) for a in accuracies], color=drawing.SOFT, linewidth=1.2, linestyle=(0, (5, 3))
            )
            twin.set(ylim=(0, 102))
            twin.set_ylabel("model's accuracy, %", color=drawing.SOFT, size=9)
            twin.tick_params(colors=drawing.SOFT, labelsize=8)
            twin.spines[["top", "left", "bottom"]].set_visible(False)
            handles, labels = [*handles, line], [*labels, "accuracy"]
        if handles:
            # Above the axes: accuracy climbs through any corner.
            ax.legend(
                handles,
                labels,
                frameon=False,
                fontsize=8,
                labelcolor=drawing.INK,
                loc="lower left",
                bbox_to_anchor=(0, 1),
                borderaxespad=0.2,
                ncols=4,
            )
        ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
        ax.set_yticks([tick for tick in ax.get_yticks() if ax.get_ylim()[0] <= tick <= min(100, ax.get_ylim()[1])])
        return figure


def _cell(name: str) -> str:
    return shown(name, 60).replace("|", "\\|")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
