"""One t for each of several layers, checkpoints or models, with one autoencoder and one e for all (MSC 4.2).

Every point is a job of its own: picklable, with a directory of its own, resumable, and skipped once it is done.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from posthoc_inn import __version__
from posthoc_inn.analysis import model_accuracy
from posthoc_inn.analysis.sweep_result import SweepPoint, SweepResult
from posthoc_inn.bundle import load_bundle
from posthoc_inn.concepts import ConceptModel
from posthoc_inn.config import AutoencoderConfig, Config
from posthoc_inn.errors import ConfigError, PosthocInnError, Problems, TrainingError
from posthoc_inn.features import LayerExtractor
from posthoc_inn.files import plain, replace_file, writing
from posthoc_inn.fit import FitRequest
from posthoc_inn.fit.pair_shares import shares_of_held_out
from posthoc_inn.images import BatchSource
from posthoc_inn.interpreter import Interpreter
from posthoc_inn.names import file_name
from posthoc_inn.progress import Reporter
from posthoc_inn.weights import fingerprint, load_weights

RESULT = "result.json"
EXTRACTOR = ("output", "call", "tokens", "prediction", "prediction_kind")
"""Options of `Interpreter` that say what of a layer is looked at."""
ACCURACY_IMAGES = 10_000
"""Held-out images that the model's accuracy is measured on."""


class Executor(Protocol):
    """What runs jobs: `concurrent.futures` executors, or a cluster's with the same method."""

    def submit(self, function: Any, /, *arguments: Any) -> Future[dict[str, Any]]:
        """Run ``function(*arguments)`` somewhere, and return a future."""


@dataclass(frozen=True)
class SweepJob:
    """One point of a sweep; complete in itself, so that it can be sent elsewhere.

    Attributes:
        name: Of the point.
        position: Where it lies: the number of steps, or the place in the list.
        model: The explained model.
        weights: File of its weights at this point; None for those it has.
        layer: The layer.
        request: What `Interpreter.fit` is asked for, the directory of this point included.
        options: What `Interpreter` is made with: autoencoder and e among them, once they are there.
        pairs: The concepts of an e that is given, as `Interpreter.fit` takes them: its shares are measured by pairs of
            held-out images. None where the request trains e, or nothing is known of pairs.
    """

    name: str
    position: float
    model: nn.Module
    weights: str | None
    layer: str
    request: FitRequest
    options: Mapping[str, Any] = field(default_factory=dict)
    pairs: Any = field(default=None, repr=False)

    @property
    def out(self) -> Path:
        """Directory of this point."""
        return Path(self.request.out or ".")

    def key(self) -> str:
        """Return a digest of what decides the result, data aside."""
        weights = None if self.weights is None else hashlib.sha256(Path(self.weights).read_bytes()).hexdigest()
        settled = {k: _settled(v) for k, v in sorted(self.options.items())}
        steps = {k: repr(getattr(self.request, k)) for k in ("steps", "epochs", "draws")}
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


def run_job(job: SweepJob, reporter: Reporter | None = None) -> dict[str, Any]:
    """Fit t at one point, measure, and leave result and bundle in the job's directory; read them if they are there.

    Args:
        job: The point.
        reporter: Shows how far it is; silent by default.

    Raises:
        PosthocInnError: The fit fails; started again, it goes on.
    """
    out, request = job.out, job.request
    key = job.key()
    known = _stored(out, key)
    if known is not None:
        return known
    model = copy.deepcopy(job.model)
    if job.weights is not None:
        load_weights(model, job.weights)
    model.eval()
    interpreter = Interpreter(model, job.layer, **job.options)
    request = dataclasses.replace(request, resume=(out / "checkpoints").is_dir())
    interpreter.learn(interpreter.prepare(request, reporter=reporter))
    interpreter.save(out / "bundle", overwrite=True)
    metrics = interpreter.metrics_
    result = {
        "key": key,
        "name": job.name,
        "position": job.position,
        "layer": job.layer,
        "accuracy": _accuracy(interpreter, request.held_out),
        **{k: metrics[k] for k in ("faithfulness", "likelihood", "explained_by_invariances", "autoencoder", "seconds")},
        "concepts": _concepts(interpreter, request, job.pairs),
        "prediction_kind": metrics.get("prediction_kind"),
    }
    with writing(out / RESULT):
        replace_file(out / RESULT, json.dumps(plain(result), indent=1))
    return result


def _concepts(interpreter: Interpreter, request: FitRequest, pairs: Any) -> dict[str, Any] | None:
    """Return what was measured of concepts; shares by pairs too where e was given and its pairs are known."""
    found: dict[str, Any] | None = interpreter.metrics_.get("concepts")
    if found is None or pairs is None:
        return found
    wanted = dataclasses.replace(request, concepts=pairs)
    shares = shares_of_held_out(interpreter.pipeline, interpreter.concept_model, wanted, seed=interpreter.seed)
    return found | {"pair_shares": None if shares is None else shares.to_dict()}


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


def _accuracy(interpreter: Interpreter, held_out: Any) -> float | None:
    """Return the model's accuracy on held-out images, or None where it is no classifier or there are no labels."""
    if isinstance(held_out, float | int):
        return None
    source = BatchSource(held_out, batch_size=250)
    pipeline = interpreter.pipeline
    kind = pipeline.extractor.kind
    found = model_accuracy(pipeline.predict, source, limit=ACCURACY_IMAGES, classes=None, kind=kind)
    return None if found is None else float(found["accuracy"])


Point = tuple[str, float, nn.Module, str | None, str, Mapping[str, Any]]
"""Name, position, model, file of its weights, layer, and what `Interpreter` is made with for this point alone."""


def layer_sweep(
    model: nn.Module,
    layers: Sequence[str],
    data: Any,
    *,
    out: str | Path,
    held_out: Any = 0.1,
    concepts: Any = None,
    autoencoder: nn.Module | AutoencoderConfig | None = None,
    concept_model: ConceptModel | None = None,
    executor: Executor | None = None,
    reporter: Reporter | None = None,
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
        concepts: What e is to learn, with the first layer; None for no e.
        autoencoder: A trained one, or the configuration of one that is fitted with the first layer; by default the
            built-in one is.
        concept_model: A trained e over that autoencoder's latents, instead of `concepts`.
        executor: Runs the jobs after the first; in this process by default. Model, data and options are pickled.
        reporter: Shows how far a job in this process is; silent by default.
        fit: What `Interpreter.fit` is called with besides (steps, draws, ...).
        options: What `Interpreter` is made with besides (spec, preset, seed, ...).

    Raises:
        ConfigError: Arguments do not fit together.
        TrainingError: Some of the jobs failed; the message names them. The others are done.
    """
    points: list[Point] = [(layer, float(k), model, None, layer, {}) for k, layer in enumerate(layers)]
    request = _request(data, fit or {}, out=out, held_out=held_out, concepts=concepts)
    return _sweep(points, "layer", request, _Shared(autoencoder, concept_model, options, reporter), executor)


def training_sweep(
    model: nn.Module,
    checkpoints: Mapping[float, str | Path],
    layer: str,
    data: Any,
    *,
    out: str | Path,
    held_out: Any = 0.1,
    concepts: Any = None,
    autoencoder: nn.Module | AutoencoderConfig | None = None,
    concept_model: ConceptModel | None = None,
    executor: Executor | None = None,
    reporter: Reporter | None = None,
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
        concept_model: See there.
        executor: See there.
        reporter: See there.
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
    points: list[Point] = [
        (f"{step:g}", float(step), model, str(path), layer, {}) for step, path in sorted(checkpoints.items())
    ]
    request = _request(data, fit or {}, out=out, held_out=held_out, concepts=concepts)
    return _sweep(points, "training step", request, _Shared(autoencoder, concept_model, options, reporter), executor)


def model_sweep(
    models: Mapping[str, tuple[nn.Module, str] | tuple[nn.Module, str, Mapping[str, Any]]],
    data: Any,
    *,
    out: str | Path,
    held_out: Any = 0.1,
    concepts: Any = None,
    autoencoder: nn.Module | AutoencoderConfig | None = None,
    concept_model: ConceptModel | None = None,
    executor: Executor | None = None,
    reporter: Reporter | None = None,
    fit: Mapping[str, Any] | None = None,
    **options: Any,
) -> SweepResult:
    """Fit t for several models on the same images, with one autoencoder and one e for all.

    Args:
        models: Name -> the trained model, its layer, and what `Interpreter` is made with for it alone (its spec).
        data: As in `layer_sweep`, like all that follows.
        out: See there.
        held_out: See there.
        concepts: See there.
        autoencoder: See there.
        concept_model: See there.
        executor: See there.
        reporter: See there.
        fit: See there.
        options: See there, for all models.

    Raises:
        ConfigError: Arguments do not fit together.
        TrainingError: Some of the jobs failed.
    """
    points: list[Point] = [
        (name, float(k), given[0], None, given[1], given[2] if len(given) == 3 else {})
        for k, (name, given) in enumerate(models.items())
    ]
    request = _request(data, fit or {}, out=out, held_out=held_out, concepts=concepts)
    return _sweep(points, "model", request, _Shared(autoencoder, concept_model, options, reporter), executor)


def _request(data: Any, fit: Mapping[str, Any], **own: Any) -> FitRequest:
    """Return the request of a sweep, whose `own` arguments are not to be hidden in `fit`."""
    hidden = sorted({*own, "resume"} & set(fit))
    if hidden:
        raise ConfigError(f"sweep: pass {', '.join(hidden)} to the sweep itself, not in fit (it resumes by itself)")
    return FitRequest.of(data, {**fit, **own})


@dataclass(frozen=True)
class _Shared:
    """What all points have in common besides the request."""

    autoencoder: nn.Module | AutoencoderConfig | None
    concept_model: ConceptModel | None
    options: Mapping[str, Any]
    reporter: Reporter | None


def _sweep(
    points: Sequence[Point], axis: str, request: FitRequest, common: _Shared, executor: Executor | None
) -> SweepResult:
    autoencoder, concept_model = common.autoencoder, common.concept_model
    names = [name for name, *_ in points]
    problems = Problems("sweep")
    problems.check(bool(points), "there is nothing to sweep over; name at least one layer, checkpoint or model")
    problems.check(len(set(names)) == len(names), f"a {axis} is named twice")
    problems.check(
        concept_model is None or isinstance(autoencoder, nn.Module),
        "a trained e needs the autoencoder it was fitted over",
    )
    problems.check(
        concept_model is None or request.concepts is None, "give a trained e (concept_model) or concepts, not both"
    )
    problems.raise_if_any()
    request.check()
    for _, _, model, _, layer, alone in points:
        # A misspelt layer is found before hours of fits at the others.
        LayerExtractor(model, layer, **{k: v for k, v in {**common.options, **alone}.items() if k in EXTRACTOR})

    def job(point: Point, shared: Mapping[str, Any], concepts: Any) -> SweepJob:
        name, position, model, weights, layer, alone = point
        own = dataclasses.replace(request, out=Path(request.out or ".") / file_name(name), concepts=concepts)
        pairs = request.concepts if concepts is None else None
        return SweepJob(name, position, model, weights, layer, own, {**common.options, **alone, **shared}, pairs)

    shared: dict[str, Any] = {} if autoencoder is None else {"autoencoder": autoencoder}
    if concept_model is not None:
        shared["concept_model"] = concept_model
    results: list[dict[str, Any]] = []
    rest = list(points)
    given = autoencoder if isinstance(autoencoder, nn.Module) else None
    if given is None or request.concepts is not None:
        # The first point trains what all share.
        first = job(rest.pop(0), shared, request.concepts)
        results.append(run_job(first, _named(common.reporter, first)))
        stored = load_bundle(first.out / "bundle", autoencoder=given)
        shared = {"autoencoder": stored.autoencoder}
        if stored.concepts is not None:
            shared["concept_model"] = stored.concepts
    more, failed = _run([job(point, shared, None) for point in rest], executor, common.reporter)
    if failed:
        each = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise TrainingError(
            f"{len(failed)} of {len(points)} jobs failed, the others are done and kept; call again to go on. {each}"
        )
    return SweepResult(tuple(SweepPoint.of(r) for r in [*results, *more]), axis)


def _named(reporter: Reporter | None, job: SweepJob) -> Reporter | None:
    """Note which point comes now."""
    if reporter is not None:
        reporter.note(f"--- {job.name}")
    return reporter


def _run(
    jobs: Sequence[SweepJob], executor: Executor | None, reporter: Reporter | None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run jobs, all of them whatever happens to one; return results, and what failed."""
    futures = None if executor is None else [executor.submit(run_job, job) for job in jobs]
    results, failed = [], {}
    for k, job in enumerate(jobs):
        try:
            done = run_job(job, _named(reporter, job)) if futures is None else futures[k].result()
            results.append(done)
        except PosthocInnError as error:
            failed[job.name] = str(error)
        except Exception as error:
            if futures is None:
                raise
            failed[job.name] = f"{type(error).__name__}: {error}"  # a worker that died, a job that cannot be pickled
    return results, failed
