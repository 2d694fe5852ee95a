"""What was measured at several layers, checkpoints or models with one autoencoder and one e (MSC 4.2, fig. 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
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
        above_floor: MSC eq. 19 without what the encoder's noise makes of it; None where it was not measured.
        pair_shares: Name -> share of what pairs have in common that z determines, its error, and whether e has learned
            the concept (`PairShare`); empty where nothing is known of pairs.
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
    above_floor: float | None = None
    pair_shares: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> SweepPoint:
        """Return what a job's result says."""
        measured = result.get("concepts") or {}
        relevance, pairs = (measured.get(k) or {"concepts": []} for k in ("relevance", "pair_shares"))
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
            above_floor=result["explained_by_invariances"].get("above_floor"),
            pair_shares={c["name"]: c for c in pairs["concepts"]},
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

    @property
    def has_pairs(self) -> bool:
        """Whether shares by pairs were measured, at some point at least."""
        return any(p.pair_shares for p in self.points)

    def share(self, concept: str, measure: str = "total_effect") -> list[float]:
        """Return a concept's share explained by z at each point.

        Args:
            concept: Its name.
            measure: "total_effect" or "first_order" (MSC eq. 20); or "pairs", the share of what pairs have in common,
                which is nan where e has not learned the concept.

        Raises:
            ConfigError: There is no such concept or measure.
        """
        try:
            if measure == "pairs":
                found = (p.pair_shares[concept] for p in self.points)
                return [float(s["value"]) if s["is_learned"] else math.nan for s in found]
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

    def _drawn(self, name: str) -> tuple[list[float], list[float]]:
        """Return the solid line of a concept and its errors, in per cent: by pairs where there are any."""
        if self.has_pairs:
            found = [p.pair_shares.get(name) or {"is_learned": False} for p in self.points]
            found = [s if s["is_learned"] else {"value": math.nan, "standard_error": math.nan} for s in found]
        else:
            found = [dict(p.concepts[name]["total_effect"]) for p in self.points]
        value, error = ([math.nan if s[k] is None else 100 * s[k] for s in found] for k in ("value", "standard_error"))
        return value, error

    @property
    def caption(self) -> str:
        """What to conclude, and what not."""
        if self.has_pairs:
            return (
                f"What the layer's z determines of each concept, by {self.axis}: solid, share of what pairs of images "
                "that share the concept have in common (with its standard error); dotted, total effect (MSC eq. 20, "
                "the paper's), which counts all that the concept's factor holds, what pairs do not share included. "
                "A point that is missing: e has not learned the concept. Points are separate fits of t: differences "
                "smaller than the error bars say nothing."
            )
        return (
            f"Share of each concept's variance that the layer's z explains, by {self.axis}: solid, total effect (MSC "
            "eq. 20, the paper's measure); dotted, first-order share, which does not depend on how t uses v. If both "
            "are high, the representation knows the concept; if only the total effect is, look at t before you "
            "conclude anything. Points are separate fits of t: differences smaller than the error bars say nothing."
        )

    def table(self) -> str:
        """Return a Markdown table: a row a point, shares by pairs, total effect and first-order share in per cent."""
        columns = {self.axis: [_cell(p.name) for p in self.points]}
        columns["accuracy"] = [_percent(p.accuracy) for p in self.points]
        for name in self.concept_names if self.has_pairs else ():
            columns[f"{_cell(name)}, by pairs"] = [_by_pairs(p.pair_shares.get(name)) for p in self.points]
        for name in self.concept_names:
            shares = zip(self.share(name), self.share(name, "first_order"), strict=True)
            columns[f"{_cell(name)}, total / first"] = [
                f"{_percent(total)} / {_percent(first)}" for total, first in shares
            ]
        columns["explained by v"] = [_percent(p.explained_by_invariances) for p in self.points]
        columns["above the floor"] = [_percent(p.above_floor) for p in self.points]
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
            value, error = self._drawn(name)
            ax.errorbar(
                x, value, yerr=error, color=color, linewidth=1.8, marker="o", markersize=3.5, capsize=2, label=legend
            )
            beside = self.share(name, "total_effect" if self.has_pairs else "first_order")
            ax.plot(x, [100 * v for v in beside], color=color, linewidth=1.2, linestyle=":")
        whole = "what pairs have in common" if self.has_pairs else "the concept's variance"
        ax.set(xlabel=drawing.as_label(self.axis), ylabel=f"explained by z, % of {whole}")
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


def _by_pairs(share: Mapping[str, Any] | None) -> str:
    if share is None:
        return ""
    if not share["is_learned"]:
        return "not learned"
    return f"{100 * share['value']:.1f} ± {100 * share['standard_error']:.1f} %"


def _cell(name: str) -> str:
    return shown(name, 60).replace("|", "\\|")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
