"""What a bundle is: the parts in memory, and the strict schema of bundle.json."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from posthoc_inn.bundle.members import DIGESTED, METRICS_FILE, MODEL_FILE, WEIGHTS_FILE
from posthoc_inn.concepts import RESIDUAL, ConceptModel
from posthoc_inn.concepts.model import LONGEST_NAME
from posthoc_inn.config import AutoencoderConfig, ConditionerConfig, Config, FlowConfig, ImageSpec
from posthoc_inn.errors import BundleError, ConfigError, Problems, quoted, shown
from posthoc_inn.features import PredictionKind
from posthoc_inn.flows import ConditionalFlow
from posthoc_inn.images import Normalization
from posthoc_inn.images.adapter import MODEL_DTYPES, Frame, InputAdapter
from posthoc_inn.rows.world import World
from posthoc_inn.weights import describe_tensors, fingerprint

FORMAT = "posthoc-inn-bundle"
FORMAT_VERSION = 7
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda data: {**data, "concepts": None, "is_flow_on_concepts": False},  # format 1 knew no e
    2: lambda data: {**data, "concepts": data.get("concepts") and {**data["concepts"], "aligned": False}},
    3: lambda data: data,  # format 3 went by the shape of the prediction, as "auto" does
    # format 4 kept no correlations and deviations of e's factors
    4: lambda data: {**data, "concepts": data.get("concepts") and {**data["concepts"], "is_measured": False}},
    5: lambda data: data,  # format 5 knew vectors and central squares alone, which is what missing keys say
    6: lambda data: data,  # format 6 knew no t that starts from the picture in z
}
"""From each older version of bundle.json to the next one."""
MAX_TEXT = 1000
MAX_VALUE = 1e6
MAX_KEYS = 64
_FREE = ("origin", "tensors")
"""Objects whose keys are not ours."""


@dataclass(frozen=True)
class Bundle:
    """The fitted parts, and what they were fitted to.

    Attributes:
        extractor: Options of the extractor: layer, output, call, tokens.
        model_fingerprint: Digest of the explained model's state.
        model_class: Name of its class.
        adapter: Between the user's tensors, pictures and model inputs.
        autoencoder: E and D.
        flow: t.
        z_shape: Shape of z without the batch.
        metrics: Plain data for metrics.json.
        origin: Plain data for whoever has to find model and data again (the command line); never code.
        concepts: e and its concepts' names, or None.
        world: What z of a generator's draws is like, or None.
        model_tensors: What `describe_tensors` says of the model, to tell where another one differs.

    >>> from posthoc_inn.autoencoders import ConvAutoencoder
    >>> model, adapter = nn.Linear(3, 2), InputAdapter(ImageSpec(), None, 28, 3)
    >>> flow = ConditionalFlow(FlowConfig(dim=2, context_dim=2, blocks=1, width=2), ConditionerConfig((2,), 2, 2))
    >>> autoencoder = ConvAutoencoder(AutoencoderConfig(latent_dim=2, width=1))
    >>> tensors = describe_tensors(model)
    >>> bundle = Bundle({}, fingerprint(model), "Linear", adapter, autoencoder, flow, (2,), model_tensors=tensors)
    >>> bundle.is_for(model)
    True
    >>> print(str(bundle.wrong_model(nn.Linear(4, 2)))[:101])
    The bundle was fitted to another model, a Linear: weight is float32 (2, 3) there, float32 (2, 4) in t
    """

    extractor: dict[str, Any]
    model_fingerprint: str
    model_class: str
    adapter: InputAdapter
    autoencoder: nn.Module
    flow: ConditionalFlow
    z_shape: tuple[int, ...]
    metrics: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    model_tensors: Mapping[str, str] = field(default_factory=dict)
    concepts: ConceptModel | None = None
    world: World | None = None

    def is_for(self, model: nn.Module) -> bool:
        """Whether `model` has the weights the bundle was fitted to."""
        return fingerprint(model) == self.model_fingerprint

    def wrong_model(self, model: nn.Module) -> BundleError:
        """Return the error that says how `model` differs from the one the bundle was fitted to."""
        own, given = shown(self.model_class, 80), type(model).__name__
        facts = _first_difference(self.model_tensors, describe_tensors(model), given)
        if facts is None:
            own_print = shown(self.model_fingerprint, 64)
            facts = f"it has the fingerprint {own_print}, the given {given} has {fingerprint(model)}."
        return BundleError(
            f"The bundle was fitted to another model, a {own}: {facts} Pass the model with the weights it was "
            "fitted to; or, if the other one is meant, load with allow_other_model=True."
        )


def _first_difference(own: Mapping[str, str], other: Mapping[str, str], given: str) -> str | None:
    """Say in a sentence where two descriptions first differ, names and shapes before values."""
    differing = sorted(n for n in own.keys() | other.keys() if own.get(n) != other.get(n))
    if not own or not differing:
        return None
    what = {n: tuple(d.get(n, "missing").rpartition(" ")[0] or "missing" for d in (own, other)) for n in differing}
    name = next((n for n in own if n in what and what[n][0] != what[n][1]), None)
    name = name or next((n for n in differing if what[n][0] != what[n][1]), None)
    if name is None:
        return (
            f"names and shapes are the same, but {len(differing)} of {len(own)} tensors have other values in the "
            f"given {given}, first {shown(differing[0], 120)}."
        )
    count = len(differing) - 1
    more = f", and {count} more tensor{' differs' if count == 1 else 's differ'}" if count else ""
    there, here = what[name]
    return f"{shown(name, 120)} is {shown(there, 80)} there, {shown(here, 80)} in the given {given}{more}."


def _check_texts(problems: Problems, **texts: str) -> None:
    for name, text in texts.items():
        problems.check(0 < len(text) <= MAX_TEXT, f"{name} must be text of 1 to {MAX_TEXT} characters")


@dataclass(frozen=True)
class ModelRecord(Config):
    """The explained model, as far as the bundle knows it."""

    class_name: str
    fingerprint: str
    tensors: Any

    def _check(self, problems: Problems) -> None:
        _check_texts(problems, class_name=self.class_name, fingerprint=self.fingerprint)
        fits = isinstance(self.tensors, dict) and all(isinstance(v, str) for v in self.tensors.values())
        problems.check(fits, "tensors must be an object of texts")


@dataclass(frozen=True)
class ExtractorRecord(Config):
    """Options of `LayerExtractor`."""

    layer: str
    output: int | str | None = None
    call: int | None = None
    tokens: Literal["all", "class", "patches", "mean"] = "all"
    prediction: int | str | None = None
    prediction_kind: PredictionKind = "auto"
    threshold: float | None = None

    def _check(self, problems: Problems) -> None:
        for text in (self.layer, self.output, self.prediction):
            problems.check(not isinstance(text, str) or len(text) <= MAX_TEXT, f"a name has over {MAX_TEXT} characters")


@dataclass(frozen=True)
class NormalizationRecord(Config):
    """What `Normalization` holds."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str

    def _check(self, problems: Problems) -> None:
        problems.check(len(self.source) <= MAX_TEXT, f"source must have at most {MAX_TEXT} characters")
        _check_statistics(problems, self.mean, self.std)


def _check_statistics(problems: Problems, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    problems.check(len(mean) in (1, 3) and len(std) in (1, 3), "mean and std must have 1 or 3 values")
    problems.check(all(-MAX_VALUE <= m <= MAX_VALUE for m in mean), f"mean must lie within ±{MAX_VALUE:g}")
    problems.check(all(1 / MAX_VALUE <= s <= MAX_VALUE for s in std), f"std must be {1 / MAX_VALUE:g} to {MAX_VALUE:g}")


@dataclass(frozen=True)
class AdapterRecord(Config):
    """What `InputAdapter` holds."""

    spec: ImageSpec
    normalization: NormalizationRecord | None
    image_size: int
    channels: int
    dtype: str = "float32"
    frame: Frame = "square"  # as in bundles that do not tell

    def _check(self, problems: Problems) -> None:
        _check_statistics(problems, self.spec.mean, self.spec.std)
        problems.check(self.dtype in MODEL_DTYPES, f"dtype must be one of {', '.join(MODEL_DTYPES)}")

    @classmethod
    def of(cls, adapter: InputAdapter) -> AdapterRecord:
        """Return what is stored of `adapter`."""
        found = adapter.normalization
        record = (
            None if found is None else NormalizationRecord(tuple(found.mean), tuple(found.std), found.source[:MAX_TEXT])
        )
        return cls(adapter.spec, record, adapter.image_size, adapter.channels, adapter.dtype, adapter.frame)

    def adapter(self) -> InputAdapter:
        """Return the adapter."""
        found = self.normalization
        normalization = None if found is None else Normalization(found.mean, found.std, found.source)
        return InputAdapter(self.spec, normalization, self.image_size, self.channels, self.dtype, self.frame)


@dataclass(frozen=True)
class AutoencoderRecord(Config):
    """The autoencoder: rebuilt from its registered kind, or, when it is the user's own, only recognised."""

    is_stored: bool
    class_name: str
    fingerprint: str
    config: AutoencoderConfig
    options: Any

    def _check(self, problems: Problems) -> None:
        _check_texts(problems, class_name=self.class_name, fingerprint=self.fingerprint)
        fits = isinstance(self.options, dict) and all(isinstance(v, (str, int, float)) for v in self.options.values())
        problems.check(fits, "options must be an object of texts and numbers")


@dataclass(frozen=True)
class ConceptRecord(Config):
    """e: its shape, and what its factors are called."""

    flow: FlowConfig
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    shape: tuple[int, ...]
    space: Literal["z_bar", "z"]
    aligned: bool
    is_measured: bool

    def _check(self, problems: Problems) -> None:
        problems.check(self.flow.context_dim == 0, "e takes no context")
        problems.check(
            len(self.sizes) == len(self.names) + 1
            and all(s >= 1 for s in self.sizes)
            and sum(self.sizes) == self.flow.dim,
            f"sizes must be {len(self.names) + 1} positive widths that add up to {self.flow.dim}, got {self.sizes}",
        )
        problems.check(len({RESIDUAL, *self.names}) == len(self.sizes), "concepts need different names")
        problems.check(
            all(0 < len(n) <= LONGEST_NAME for n in self.names), f"names must have 1 to {LONGEST_NAME} characters"
        )
        fits = bool(self.shape) and all(s >= 1 for s in self.shape) and math.prod(self.shape) == self.flow.dim
        problems.check(fits, f"shape {self.shape} has not the flow's {self.flow.dim} values")
        problems.check(abs(self.flow.seed) < 1 << 63, "a seed must have at most 63 bits")

    def with_blocks(self, blocks: int) -> ConceptRecord:
        """Return a copy with another number of blocks."""
        return self.replace(flow=self.flow.replace(blocks=blocks))

    @classmethod
    def of(cls, concepts: ConceptModel) -> ConceptRecord:
        """Return what is stored of `concepts`, besides its weights."""
        return cls(
            concepts.flow.config,
            concepts.names,
            concepts.factor_dims,
            concepts.shape,
            concepts.space,
            concepts.flow.alignment is not None,
            concepts.is_measured,
        )


@dataclass(frozen=True)
class MemberRecord(Config):
    """Size in bytes and sha256 of a file."""

    size: int
    sha256: str

    def _check(self, problems: Problems) -> None:
        problems.check(self.size >= 0, f"size must not be negative, got {self.size}")
        problems.check(bool(re.fullmatch(r"[0-9a-f]{64}", self.sha256)), "sha256 must be 64 hexadecimal digits")


@dataclass(frozen=True)
class Document(Config):
    """The content of bundle.json."""

    format: str
    format_version: int
    project_version: str
    model: ModelRecord
    extractor: ExtractorRecord
    z_shape: tuple[int, ...]
    adapter: AdapterRecord
    autoencoder: AutoencoderRecord
    flow: FlowConfig
    conditioner: ConditionerConfig
    concepts: ConceptRecord | None
    is_flow_on_concepts: bool
    origin: Any
    members: Any

    def _check(self, problems: Problems) -> None:
        _check_texts(problems, project_version=self.project_version)
        problems.check(isinstance(self.origin, dict), "origin must be an object")
        latent, pictures = self.autoencoder.config, self.adapter
        for is_good, text in (
            (self.z_shape == self.conditioner.z_shape, "z_shape differs between the bundle and the conditioner"),
            (self.flow.context_dim == self.conditioner.context_dim, "context_dim differs between flow and conditioner"),
            (self.flow.dim == latent.latent_dim, "the flow's dim differs from the autoencoder's latent_dim"),
            (pictures.image_size == latent.size, "image_size differs between adapter and autoencoder"),
            (pictures.channels == latent.channels, "channels differs between adapter and autoencoder"),
            (
                not self.flow.is_pictures_first
                or self.conditioner.picture_shape == (latent.channels, latent.size, latent.size),
                "the pictures that t looks for in z are not the autoencoder's",
            ),
        ):
            problems.check(is_good, text)
        if self.concepts is not None:
            width = latent.latent_dim if self.concepts.space == "z_bar" else math.prod(self.z_shape)
            problems.check(self.concepts.flow.dim == width, f"e's dim differs from that of {self.concepts.space}")
        if self.is_flow_on_concepts:
            problems.check(self.concepts is not None, "t is said to work on e's factors, and there is no e")
        seeds = (self.flow.seed, self.conditioner.seed, latent.seed)
        problems.check(all(abs(s) < 1 << 63 for s in seeds), "a seed must have at most 63 bits")
        problems.check(math.prod(self.z_shape) < 1 << 40, f"z_shape is too large: {self.z_shape}")
        if not isinstance(self.members, dict):
            problems.check(False, "members must be an object")
            return
        for name in self.members:
            problems.check(name in DIGESTED, f"unknown member {name!r}; a bundle has {', '.join(DIGESTED)}")
        for name in (WEIGHTS_FILE, METRICS_FILE):
            problems.check(name in self.members, f"members lacks {name}")
        if isinstance(self.origin, dict) and self.origin.get("weights_file") is not None:
            named = self.origin["weights_file"]
            problems.check(
                named == MODEL_FILE and MODEL_FILE in self.members,
                f"origin's weights_file must be the member {MODEL_FILE}, got {named!r}",
            )

    def member(self, name: str) -> MemberRecord:
        """Return size and digest of a member."""
        return MemberRecord.from_dict(self.members[name])


def _is_modest(value: Any, depth: int = 5) -> bool:
    """Whether names and lists are of a length that messages about them are worth computing."""
    if isinstance(value, dict):
        return depth > 0 and all(
            len(value) <= MAX_KEYS and len(k) <= MAX_TEXT and (k in _FREE or _is_modest(v, depth - 1))
            for k, v in value.items()
        )
    if isinstance(value, list):
        return depth > 0 and len(value) <= MAX_KEYS and all(_is_modest(v, depth - 1) for v in value)
    return True


def parse_document(data: Any, directory: object) -> Document:
    """Check the content of bundle.json, format and version first.

    Raises:
        BundleError: It is no bundle's, newer, or not valid; each with its own message.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BundleError(
            f"{directory} is no bundle: its bundle.json does not say that its format is {FORMAT!r}. Pass a "
            "directory that Interpreter.save wrote."
        )
    version = data.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"The bundle {directory} states no valid format version, got {quoted(version)}.")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"The bundle {directory} was written by a newer version of posthoc-inn, "
            f"{shown(data.get('project_version'), 40)} (format {shown(version, 40)}; this one reads up to "
            f"{FORMAT_VERSION}); upgrade posthoc-inn."
        )
    if not _is_modest(data):
        raise BundleError(
            f"bundle.json of the bundle {directory} is not valid: an object or list in it is too long or deep."
        )
    try:
        for older in range(version, FORMAT_VERSION):
            data = MIGRATIONS[older](data)
        document = Document.from_dict(data)
        for name in document.members:
            document.member(name)
    except ConfigError as error:
        raise BundleError(f"bundle.json of the bundle {directory} is not valid: {shown(error)}") from None
    return document
