"""One t for each of several layers, or checkpoints of a training run, with one autoencoder and one e for all (MSC 4.2).

Every point is a job of its own: picklable, with a directory of its own, resumable, and skipped once it is done.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from posthoc_inn import __version__, drawing
from posthoc_inn.analysis.results import Result
from posthoc_inn.bundle import load_bundle
from posthoc_inn.concepts import RANDOM, RESIDUAL, ConceptModel
from posthoc_inn.config import Config
from posthoc_inn.errors import ConfigError, DataError, PosthocInnError, Problems, TrainingError
from posthoc_inn.features.outputs import is_classification
from posthoc_inn.files import replace_file
from posthoc_inn.images import BatchSource
from posthoc_inn.interpreter import Interpreter
from posthoc_inn.weights import fingerprint, load_weights

RESULT = "result.json"


class Executor(Protocol):
    """What runs jobs: `concurrent.futures` executors, or a cluster's with the same method."""

    def submit(self, function: Any, /, *arguments: Any) -> Future[dict[str, Any]]:
        """Run ``function(*arguments)`` somewhere, and return a future."""


@dataclass(frozen=True)
class SweepJob:
    """One point of a sweep; complete in itself, so that it can be sent elsewhere.

    Attributes:
        name: Of the point.
        position: Where it lies: the number of steps, or the place in the list of layers.
        model: The explained model.
        weights: File of its weights at this point; None for those it has.
        layer: The layer.
        data: Images to fit on, as `Interpreter.fit` takes them.
        held_out: Held-out images, or the share of `data`.
        out: Directory of this point.
        options: What `Interpreter` is made with: autoencoder and e among them, once they are there.
        fit: What `Interpreter.fit` is called with besides.
    """

    name: str
    position: float
    model: nn.Module
    weights: str | None
    layer: str
    data: Any
    held_out: Any
    out: str
    options: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)

    def key(self) -> str:
        """Return a digest of what decides the result, data aside."""
        weights = None if self.weights is None else hashlib.sha256(Path(self.weights).read_bytes()).hexdigest()
        settled = {k: _settled(v) for k, v in sorted(self.options.items())}
        steps = {k: repr(v) for k, v in sorted(self.fit.items()) if k in ("steps", "epochs", "draws")}
        facts = [__version__, self.name, self.layer, fingerprint(self.model), weights, settled, steps]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _settled(value: Any) -> Any:
    """Return what of an option decides the result: of a configuration, what differs from its defaults.

    What the defaults are depends on the version, which is part of the key too.
    """
    if isinstance(value, nn.Module):
        return fingerprint(value)
    if isinstance(value, Config):
        fields = {f.name: f for f in dataclasses.fields(value)}
        own = {name: getattr(value, name) for name in fields}
        return {
            name: _settled(v)
            for name, v in own.items()
            if fields[name].default is dataclasses.MISSING or v != fields[name].default
        }
    return repr(value)


def run_job(job: SweepJob) -> dict[str, Any]:
    """Fit t at one point, measure, and leave result and bundle in the job's directory; read them if they are there.

    Raises:
        PosthocInnError: The fit fails; started again, it goes on.
    """
    out = Path(job.out)
    key = job.key()
    known = _stored(out, key)
    if known is not None:
        return known
    model = copy.deepcopy(job.model)
    if job.weights is not None:
        load_weights(model, job.weights)
    model.eval()
    interpreter = Interpreter(model, job.layer, **job.options)
    interpreter.fit(job.data, held_out=job.held_out, out=out, resume=(out / "checkpoints").is_dir(), **job.fit)
    interpreter.save(out / "bundle", overwrite=True)
    metrics = interpreter.metrics_
    result = {
        "key": key,
        "name": job.name,
        "position": job.position,
        "layer": job.layer,
        "accuracy": accuracy(interpreter, job.held_out),
        **{k: metrics[k] for k in ("faithfulness", "likelihood", "explained_by_invariances", "autoencoder", "seconds")},
        "concepts": metrics.get("concepts"),
    }
    replace_file(out / RESULT, json.dumps(result, indent=1))
    return result


def _stored(out: Path, key: str) -> dict[str, Any] | None:
    try:
        found = json.loads((out / RESULT).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("key") != key:
        raise ConfigError(
            f"{out} holds the result of another job: other weights, layer or settings. Choose another directory, or "
            "remove it."
        )
    return found


@torch.no_grad()
def accuracy(interpreter: Interpreter, held_out: Any, *, limit: int = 10_000) -> float | None:
    """Return the model's accuracy on held-out images, or None where it is no classifier or there are no labels."""
    if isinstance(held_out, float | int):
        return None
    pipeline = interpreter.pipeline
    hits = count = 0
    for batch in BatchSource(held_out, batch_size=250, limit=limit).batches():
        labels = batch["labels"]
        if isinstance(labels, dict):
            labels = next((v for v in labels.values() if v.ndim == 1), None)
        if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
            return None
        output = pipeline.predict(batch["images"])
        if not is_classification(output):
            return None
        hits += int((output.argmax(1).cpu() == labels).sum())
        count += len(labels)
    return hits / max(1, count)


@dataclass(frozen=True)
class SweepPoint(Result):
    """What was measured at one layer or checkpoint.

    Attributes:
        name: Of the point.
        position: Number of steps, or place in the list of layers.
        layer: The layer.
        accuracy: Of the model, on held-out images; None where it has none.
        held_out: Nats of t on held-out images.
        agreement: Share of samples that the model classifies as their image.
        explained_by_invariances: MSC eq. 19.
        concepts: Name -> {total_effect, first_order, interaction} of z (MSC eq. 20), with their errors.
    """

    name: str
    position: float
    layer: str
    accuracy: float | None
    held_out: float
    agreement: float | None
    explained_by_invariances: float
    concepts: Mapping[str, Mapping[str, Any]]

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
        )


@dataclass(frozen=True)
class SweepResult(Result):
    """A sweep over layers or checkpoints (MSC fig. 4).

    Attributes:
        points: In their order.
        axis: What the position is: "training step" or "layer".
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
            "eq. 20, the paper's measure); dotted, first-order share, which does not depend on t's choice of v. Where "
            "both are high, the representation knows the concept; where only the total effect is, look at t before "
            "concluding anything. Points are separate fits of t: differences smaller than the error bars say nothing."
        )

    def table(self) -> str:
        """Return a Markdown table: a row a point, total effect and first-order share in per cent."""
        columns = {self.axis: [p.name for p in self.points]}
        columns["accuracy"] = [_percent(p.accuracy) for p in self.points]
        for name in self.concept_names:
            shares = zip(self.share(name), self.share(name, "first_order"), strict=True)
            columns[f"{name}, total / first"] = [f"{_percent(total)} / {_percent(first)}" for total, first in shares]
        columns["explained by v"] = [_percent(p.explained_by_invariances) for p in self.points]
        columns["t, nats"] = [f"{p.held_out:.1f}" for p in self.points]
        columns["agreement"] = [_percent(p.agreement) for p in self.points]
        # A column without any value says nothing: not every model is a classifier.
        columns = {title: cells for title, cells in columns.items() if any(cells)}
        rows = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)

    def figure(self, ax: Axes | None = None) -> Figure:
        """Draw the shares of every concept over the points, and the accuracy where there is one (MSC fig. 4)."""
        figure, ax = drawing.axes(ax, 7.2, 3.9)
        is_layers = self.axis == "layer"
        x = list(range(len(self.points))) if is_layers else [p.position for p in self.points]
        for color, name in zip(drawing.PALETTE, self.concept_names, strict=False):
            shares = [p.concepts[name]["total_effect"] for p in self.points]
            value = [100 * s["value"] for s in shares]
            error = [100 * s["standard_error"] for s in shares]
            ax.errorbar(
                x, value, yerr=error, color=color, linewidth=1.8, marker="o", markersize=3.5, capsize=2, label=name
            )
            ax.plot(x, [100 * v for v in self.share(name, "first_order")], color=color, linewidth=1.2, linestyle=":")
        ax.set(xlabel=self.axis, ylabel="explained by z, % of the concept's variance")
        drawing.plain(ax)
        if is_layers:
            ax.set_xticks(x, [p.name for p in self.points], rotation=25, ha="right")
        accuracies = [p.accuracy for p in self.points]
        handles, labels = ax.get_legend_handles_labels()
        if all(a is not None for a in accuracies) and len(set(accuracies)) > 1:
            twin = ax.twinx()
            (line,) = twin.plot(x, [100 * (a or 0) for a in accuracies], color=drawing.SOFT, linewidth=1.2,
                                linestyle=(0, (5, 3)))  # fmt: skip
            twin.set(ylim=(0, 102))
            twin.set_ylabel("model's accuracy, %", color=drawing.SOFT, size=9)
            twin.tick_params(colors=drawing.SOFT, labelsize=8)
            twin.spines[["top", "left", "bottom"]].set_visible(False)
            handles, labels = [*handles, line], [*labels, "accuracy"]
        if handles:
            # Above the axes: accuracy climbs through any corner.
            ax.legend(
                handles, labels, frameon=False, fontsize=8, labelcolor=drawing.INK, loc="lower left",
                bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=4,
            )  # fmt: skip
        ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
        ax.set_yticks([tick for tick in ax.get_yticks() if ax.get_ylim()[0] <= tick <= min(100, ax.get_ylim()[1])])
        return figure


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def layer_sweep(
    model: nn.Module,
    layers: Sequence[str],
    data: Any,
    *,
    out: str | Path,
    held_out: Any = 0.1,
    concepts: Any = None,
    autoencoder: nn.Module | None = None,
    executor: Executor | None = None,
    fit: Mapping[str, Any] | None = None,
    **options: Any,
) -> SweepResult:
    """Fit t at each of several layers, from input to output.

    Args:
        model: Any trained model.
        layers: Their names, in the order of depth.
        data: Images, as `Interpreter.fit` takes them.
        out: Directory; each layer gets one of its own in it. What is done is kept when it is called again.
        held_out: Images kept aside, or the share of `data`.
        concepts: What e is to learn, or a trained `ConceptModel`; None for no concepts.
        autoencoder: A trained one; fitted with the first layer by default.
        executor: Runs the jobs after the first; in this process by default. Model, data and options are pickled.
        fit: What `Interpreter.fit` is called with besides (steps, draws, ...).
        options: What `Interpreter` is made with besides (spec, preset, seed, ...).

    Raises:
        ConfigError: Arguments do not fit together.
        TrainingError: Some of the jobs failed; the message names them. The others are done.
    """
    points = [(layer, float(k), None, layer) for k, layer in enumerate(layers)]
    return _sweep(
        model, points, data, "layer", out=out, held_out=held_out, concepts=concepts, autoencoder=autoencoder,
        executor=executor, fit=fit or {}, options=options,
    )  # fmt: skip


def training_sweep(
    model: nn.Module,
    checkpoints: Mapping[float, str | Path],
    layer: str,
    data: Any,
    *,
    out: str | Path,
    held_out: Any = 0.1,
    concepts: Any = None,
    autoencoder: nn.Module | None = None,
    executor: Executor | None = None,
    fit: Mapping[str, Any] | None = None,
    **options: Any,
) -> SweepResult:
    """Fit t at several checkpoints of one training run (MSC 4.2, fig. 4).

    Args:
        model: The network; its weights are not looked at.
        checkpoints: Number of steps -> file with the weights (safetensors, or a state dict torch reads safely).
        layer: The layer.
        data: As in `layer_sweep`, like all that follows.
        out: See there.
        held_out: See there.
        concepts: See there.
        autoencoder: See there.
        executor: See there.
        fit: See there.
        options: See there.

    Raises:
        ConfigError: Arguments do not fit together, or a file is missing.
        TrainingError: Some of the jobs failed.
    """
    missing = [str(path) for path in checkpoints.values() if not Path(path).is_file()]
    if missing:
        raise ConfigError(
            f"There is no checkpoint {missing[0]}" + (f", nor {len(missing) - 1} more." * (len(missing) > 1))
        )
    points = [(f"{step:g}", float(step), str(path), layer) for step, path in sorted(checkpoints.items())]
    return _sweep(
        model, points, data, "training step", out=out, held_out=held_out, concepts=concepts, autoencoder=autoencoder,
        executor=executor, fit=fit or {}, options=options,
    )  # fmt: skip


def _sweep(
    model: nn.Module,
    points: Sequence[tuple[str, float, str | None, str]],
    data: Any,
    axis: str,
    *,
    out: str | Path,
    held_out: Any,
    concepts: Any,
    autoencoder: nn.Module | None,
    executor: Executor | None,
    fit: Mapping[str, Any],
    options: Mapping[str, Any],
) -> SweepResult:
    is_given = isinstance(concepts, ConceptModel)
    names = [name for name, *_ in points]
    problems = Problems("sweep")
    problems.check(bool(points), "there is nothing to sweep over; name at least one layer or checkpoint")
    problems.check(len(set(names)) == len(names), "a layer or checkpoint is named twice")
    problems.check(not is_given or autoencoder is not None, "a trained e needs the autoencoder it was fitted over")
    reserved = sorted({"out", "resume", "held_out", "concepts"} & set(fit)) + sorted({"concepts"} & set(options))
    problems.check(not reserved, f"pass {', '.join(reserved)} to the sweep itself")
    problems.raise_if_any()

    def job(point: tuple[str, float, str | None, str], own: Mapping[str, Any], more: Mapping[str, Any]) -> SweepJob:
        name, position, weights, layer = point
        where = Path(out) / _directory(name)
        return SweepJob(
            name, position, model, weights, layer, data, held_out, str(where), {**options, **own}, {**fit, **more}
        )

    shared: dict[str, Any] = {"autoencoder": autoencoder} if autoencoder is not None else {}
    if is_given:
        shared["concepts"] = concepts
    results: list[dict[str, Any]] = []
    rest = list(points)
    if autoencoder is None or (concepts is not None and not is_given):
        # The first point trains what all share.
        first = job(rest.pop(0), shared, {} if concepts is None or is_given else {"concepts": concepts})
        results.append(run_job(first))
        stored = load_bundle(Path(first.out) / "bundle", autoencoder=autoencoder)
        shared = {"autoencoder": stored.autoencoder}
        if stored.concepts is not None:
            shared["concepts"] = stored.concepts
    more, failed = _run([job(point, shared, {}) for point in rest], executor)
    if failed:
        told = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise TrainingError(
            f"{len(failed)} of {len(points)} jobs failed, the others are done and kept; call again to go on. {told}"
        )
    return SweepResult(tuple(SweepPoint.of(r) for r in [*results, *more]), axis)


def _run(jobs: Sequence[SweepJob], executor: Executor | None) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run jobs, all of them whatever happens to one; return results, and what failed."""
    futures = None if executor is None else [executor.submit(run_job, job) for job in jobs]
    results, failed = [], {}
    for k, job in enumerate(jobs):
        try:
            results.append(run_job(job) if futures is None else futures[k].result())
        except PosthocInnError as error:
            failed[job.name] = str(error)
        except Exception as error:
            if futures is None:
                raise
            failed[job.name] = f"{type(error).__name__}: {error}"  # a worker that died, a job that cannot be pickled
    return results, failed


def _directory(name: str) -> str:
    """Return a directory's name for a point's."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return (
        plain
        if plain == name and name not in ("", ".", "..")
        else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    )
