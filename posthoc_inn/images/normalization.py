"""Which mean and standard deviation users' images were normalised with, and the way back to [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import ChainDataset, ConcatDataset, DataLoader, Dataset, Subset

from posthoc_inn.errors import DataError, Problems
from posthoc_inn.images.batches import BatchSource
from posthoc_inn.images.spec import denormalize, normalize

LOOKED_AT = 512
"""Images whose range is looked at."""

KNOWN: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "ImageNet mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mean 0.5 and std 0.5, values -1 to 1": ((0.5,), (0.5,)),
    "CLIP mean and std": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "CIFAR-10 mean and std": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10 mean and std (the variant with std 0.2023, 0.1994, 0.2010)": (
        (0.4914, 0.4822, 0.4465),
        (0.2023, 0.1994, 0.2010),
    ),
    "CIFAR-100 mean and std": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "CIFAR-100 mean and std (the variant with std 0.2009, 0.1984, 0.2023)": (
        (0.5070, 0.4865, 0.4409),
        (0.2009, 0.1984, 0.2023),
    ),
    "MNIST mean and std": ((0.1307,), (0.3081,)),
    "FashionMNIST mean and std": ((0.2860,), (0.3530,)),
    "KMNIST mean and std": ((0.1918,), (0.3483,)),
    "EMNIST mean and std": ((0.1736,), (0.3317,)),
    "SVHN mean and std": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "Tiny ImageNet mean and std": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "fixed face standardisation, (value - 127.5) / 128": ((127.5 / 255,), (128 / 255,)),
    "mean 0.5 and std 1": ((0.5,), (1.0,)),
    "values 0 to 255, not divided": ((0.0,), (1 / 255,)),
}
"""Well-known constants by name, in units of [0, 1]."""

HIT = 0.02
"""How near the extremes of the images must come to 0 and 1 (about 5 of 255 levels)."""

ROUNDING = 0.004
"""How far beyond 0 and 1 they may lie: one of 255 levels, for half-precision data."""

EXACT = 0.0005
"""Extremes this near to 0 and 1 are black and white pixels: the fit is no coincidence."""

AMBIGUOUS = 0.01
"""Two constants that fit and whose pixels differ by more than this are told apart, or else an error."""

# They move, cut or blank pixels, or convert types, but leave the relation between value and brightness as it
# is.
_HARMLESS = frozenset(
    {
        "CenterCrop",
        "ClampBoundingBoxes",
        "ConvertImageDtype",
        "ElasticTransform",
        "FiveCrop",
        "HorizontalFlip",
        "Identity",
        "Pad",
        "RandomAffine",
        "RandomCrop",
        "RandomErasing",
        "RandomHorizontalFlip",
        "RandomPerspective",
        "RandomResize",
        "RandomResizedCrop",
        "RandomRotation",
        "RandomShortestSize",
        "RandomVerticalFlip",
        "RandomZoomOut",
        "Resize",
        "SanitizeBoundingBoxes",
        "ScaleJitter",
        "TenCrop",
        "ToDtype",
        "ToImage",
        "ToImageTensor",
        "ToPureTensor",
        "ToTensor",
        "ToTensorV2",
        "VerticalFlip",
    }
)
_NORMALIZING = frozenset({"Normalize", "ImageClassification"})


@dataclass(frozen=True)
class Normalization:
    """How the user's values relate to canonical ones: x = (image - mean) / std, per channel.

    Attributes:
        mean: In units of [0, 1]; one value, or one a channel.
        std: Likewise.
        source: How they were found, in words.

    >>> n = Normalization((0.5,), (0.5,), "given")
    >>> n.undo(torch.tensor([[[[-1.0]], [[0.0]], [[1.0]]]])).flatten().tolist()
    [0.0, 0.5, 1.0]
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str

    @property
    def is_identity(self) -> bool:
        """Whether the user's values are canonical already."""
        return all(m == 0 for m in self.mean) and all(s == 1 for s in self.std)

    def apply(self, images: Tensor) -> Tensor:
        """Return the user's values of canonical images (B, C, H, W)."""
        return normalize(images, self.mean, self.std)

    def undo(self, x: Tensor) -> Tensor:
        """Return canonical images of the user's values (B, C, H, W), up to rounding in [0, 1]."""
        return denormalize(x, self.mean, self.std)

    def to_canonical(self, x: Tensor) -> Tensor:
        """Return `undo(x)` clamped to [0, 1]."""
        return self.undo(x).clamp(0, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"mean": list(self.mean), "std": list(self.std), "source": self.source}


def recognize_normalization(
    data: Any,
    *,
    mean: float | Sequence[float] | Tensor | None = None,
    std: float | Sequence[float] | Tensor | None = None,
) -> Normalization:
    """Find out how the images of `data` were normalised.

    In this order: as given; as the data set's own transform says (torchvision's Normalize, also nested and
    under wrappers), if the values agree; not at all, where they lie in [0, 1]; by a range that fits
    well-known constants.

    Args:
        data: Anything that `BatchSource` accepts, or one.
        mean: Mean in units of [0, 1], where the user knows it; needs `std`.
        std: Standard deviation likewise.

    Raises:
        ConfigError: `mean` and `std` are not a pair of 1 or C positive (std) finite numbers.
        DataError: Nothing fits; the message says what was seen and what to pass.

    >>> images = torch.linspace(-1, 1, 64).reshape(4, 1, 4, 4)
    >>> recognize_normalization(images).source
    'recognised from the range of 4 images: mean 0.5 and std 0.5, values -1 to 1'
    """
    source = data if isinstance(data, BatchSource) else BatchSource(data)
    source.check()
    images = source.first(LOOKED_AT)
    count = f"{len(images)} images"
    if mean is not None or std is not None:
        given = _given(mean, std, images.shape[1])
        low, high, share = _canonical_range(images, given)
        if share > 0.05:
            raise DataError(
                f"With the given mean {_numbers(given.mean)} and std {_numbers(given.std)} the images span "
                f"{low:.3g} to {high:.3g} instead of 0 to 1 ({_ranges(images)}, {count}); mean and std are "
                f"in units of [0, 1], and image = value * std + mean."
            )
        return given
    declared, note = _declared(source.data)
    if declared is not None:
        note = _contradiction(images, declared)
        if note is None:
            return declared
    suffix = f" ({note})" if note else ""
    if source.source_dtype == torch.uint8:
        return Normalization((0.0,), (1.0,), f"uint8 images, divided by 255{suffix}")
    low, high = images.amin().item(), images.amax().item()
    if low >= -1e-6 and high <= 1 + 1e-6:
        if 0 < high <= 1.001 / 255:
            raise DataError(
                f"The images lie between {low:.3g} and {high:.3g} ({count}): they seem to be divided by 255 "
                f"twice. Undo one, or pass mean=0, std=1 if they are meant so."
            )
        return Normalization((0.0,), (1.0,), f"the values of {count} lie in [0, 1]{suffix}")
    beyond = ((images < -ROUNDING) | (images > 1 + ROUNDING)).float().mean().item()
    if low >= -0.25 and high <= 1.25 and beyond <= 0.01:
        # Bicubic resizing of tensors overshoots.
        return Normalization((0.0,), (1.0,), f"but for {beyond:.1%} the values of {count} lie in [0, 1]{suffix}")
    name, found = _fitting(images, KNOWN)
    if name is None or found is None:
        is_bytes = low >= 0 and high <= 255 and bool((images == images.round()).all())
        if not is_bytes:
            raise DataError(_nothing_fits(images, count, note))
        name = "values 0 to 255, not divided"
        found = KNOWN[name]
    return Normalization(*found, f"recognised from the range of {count}: {name}{suffix}")


# ---- given


def _values(raw: Any) -> tuple[float, ...] | None:
    if isinstance(raw, (int, float)):
        return (float(raw),)
    try:
        values = torch.as_tensor(raw, dtype=torch.float64).flatten().tolist()
    except (TypeError, ValueError, RuntimeError):
        return None
    # Through float32 and back to the shortest decimal, so that a float32 0.485 prints as 0.485.
    return tuple(float(f"{v:.7g}") for v in values)


def _given(mean: Any, std: Any, channels: int) -> Normalization:
    problems = Problems("Normalisation")
    pairs = {"mean": mean, "std": std}
    found: dict[str, tuple[float, ...]] = {}
    for name, raw in pairs.items():
        other = "std" if name == "mean" else "mean"
        values = None if raw is None else _values(raw)
        if values is None:
            what = f"pass {name} along with {other}" if raw is None else f"{name} must be numbers, got {raw!r}"
            problems.check(False, what)
            continue
        allowed = "1 value" if channels == 1 else f"1 or {channels} values"
        problems.check(len(values) in (1, channels), f"{name} must have {allowed}, got {len(values)}")
        problems.check(all(math.isfinite(v) for v in values), f"{name} must be finite, got {values}")
        problems.check(name == "mean" or all(v > 0 for v in values), f"std must be positive, got {values}")
        found[name] = values
    problems.raise_if_any()
    return Normalization(found["mean"], found["std"], "given")


def _canonical_range(images: Tensor, normalization: Normalization) -> tuple[float, float, float]:
    """Return lowest and highest canonical value, and the share of values that lie well outside of [0, 1]."""
    canonical = normalization.undo(images)
    outside = ((canonical < -0.05) | (canonical > 1.05)).float().mean().item()
    return canonical.amin().item(), canonical.amax().item(), outside


def _contradiction(images: Tensor, declared: Normalization) -> str | None:
    """Say why the values cannot come from what the transform declares, or return None."""
    widths = {len(declared.mean), len(declared.std)}
    if not widths <= {1, images.shape[1]}:
        return f"the data set's own Normalize was not used: it is meant for {max(widths)} channels"
    low, high, share = _canonical_range(images, declared)
    if share > 0.05:
        return f"the data set's own Normalize was not used: images would span {low:.3g} to {high:.3g}"
    as_is = images.amin().item(), images.amax().item()
    is_canonical = -1e-6 <= as_is[0] <= HIT and 1 - HIT <= as_is[1] <= 1 + 1e-6
    if is_canonical and (low > 0.1 or high < 0.9):
        return "the data set's own Normalize was not used: the values span 0 to 1 without undoing it"
    return None


# ---- declared by the data set's own transform


def _declared(data: Any) -> tuple[Normalization | None, str | None]:
    """Return what the data set's own transforms say, or None and perhaps why not."""
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    is_found = False
    stages, note = _stages(data)
    if note is not None:
        return None, note
    for stage in stages:
        name = type(stage).__name__
        if name in _NORMALIZING:
            values = _values(getattr(stage, "mean", None)), _values(getattr(stage, "std", None))
            if not values[0] or not values[1]:
                return None, f"the data set's own {name} was not understood"
            # A further one acts on normalised values: (x - m) / s with x = (image - mean) / std.
            mean, std = _compose(mean, std, values[0], values[1])
            is_found = True
        elif is_found and name not in _HARMLESS:
            name = getattr(stage, "__name__", name)
            return None, f"the data set's own Normalize was not used: {name} follows it"
        elif _hides_normalize(stage):
            return None, f"the data set's own Normalize was not used: {name} applies it at random"
    if not is_found or not all(s > 0 for s in std):
        return None, None
    return Normalization(mean, std, "the data set's own transform"), None


def _compose(
    mean: tuple[float, ...], std: tuple[float, ...], m: tuple[float, ...], s: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if all(v == 0 for v in mean) and all(v == 1 for v in std):
        return m, s
    n = max(len(mean), len(std), len(m), len(s))
    mean, std, m, s = (v * n if len(v) == 1 else v for v in (mean, std, m, s))
    joined = [(a + c * b, b * d) for a, b, c, d in zip(mean, std, m, s, strict=True)]
    return tuple(a for a, _ in joined), tuple(b for _, b in joined)


def _stages(data: Any, depth: int = 0) -> tuple[list[Any], str | None]:
    """List the transforms of a data set in the order in which they are applied, wrappers followed."""
    if depth > 20 or data is None or isinstance(data, (Tensor, list, tuple, dict)):
        return [], None
    if isinstance(data, BatchSource):
        return _stages(data.data, depth + 1)
    if isinstance(data, DataLoader) or type(data) is Subset:
        return _stages(data.dataset, depth + 1)
    if isinstance(data, (ConcatDataset, ChainDataset)):
        parts = [_declared(d) for d in data.datasets]
        first = parts[0][0]
        if any(p[0] != first for p in parts):
            return [], "the parts of the data set are not all normalised alike by their own transforms"
        return (_stages(next(iter(data.datasets)), depth + 1)) if first is not None else ([], parts[0][1])
    found: list[Any] = []
    for name in ("dataset", "subset", "base_dataset", "base", "data"):
        inner = getattr(data, name, None)
        if isinstance(inner, Dataset):
            found, note = _stages(inner, depth + 1)
            if note is not None:
                return [], note
            break
    own = getattr(data, "transforms", None)
    if own is None or type(own).__name__ == "StandardTransform":
        named = [getattr(data, name, None) for name in ("transform", "_transform", "image_transform")]
        own = next((t for t in named if t is not None), None)
    return found + list(_leaves(own)), None


def _leaves(transform: Any) -> Iterable[Any]:
    if transform is None:
        return
    inner = _children(transform)
    if inner and (type(transform).__name__ == "Compose" or isinstance(transform, nn.Sequential)):
        for child in inner:
            yield from _leaves(child)
    else:
        yield transform


def _children(transform: Any) -> list[Any]:
    if isinstance(transform, (list, tuple)):
        return list(transform)
    if isinstance(transform, nn.Sequential):
        return list(transform)
    inner = getattr(transform, "transforms", None)
    return list(inner) if isinstance(inner, (list, tuple, nn.ModuleList)) else []


def _hides_normalize(stage: Any) -> bool:
    return any(type(c).__name__ in _NORMALIZING or _hides_normalize(c) for c in _children(stage))


# ---- recognised by range


_Constants = tuple[tuple[float, ...], tuple[float, ...]]


def _extremes(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[list[float], list[float]]:
    """Return the canonical minimum and maximum of each channel under a candidate."""
    low, high = images.amin((0, 2, 3)).double(), images.amax((0, 2, 3)).double()
    m, s = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    return (low * s + m).tolist(), (high * s + m).tolist()


def _fitting(
    images: Tensor, known: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]
) -> tuple[str | None, tuple[tuple[float, ...], tuple[float, ...]] | None]:
    """Return the tightest of the constants whose bounds the images hit and never exceed.

    Raises:
        DataError: Two fit equally well but mean different pixels.
    """
    fits: list[tuple[float, str]] = []
    for name, (mean, std) in known.items():
        if len(mean) not in (1, images.shape[1]):
            continue
        lows, highs = _extremes(images, mean, std)
        is_inside = min(lows) >= -ROUNDING and max(highs) <= 1 + ROUNDING
        if is_inside and max(lows) <= HIT and min(highs) >= 1 - HIT:
            fits.append((max(abs(v) for v in [*lows, *(h - 1 for h in highs)]), name))
    if not fits:
        return None, None
    common = [name for _, name in fits]
    fits.sort()
    residual, best = fits[0]
    if residual > EXACT:
        # No pixel sits on a bound, so a hair's difference between two fits says nothing: the more common one it is.
        best = next(name for name in common if _pixels_apart(images, known[best], known[name]) <= ROUNDING)
    for other_residual, other in fits[1:]:
        apart = _pixels_apart(images, known[best], known[other])
        if apart > AMBIGUOUS and other_residual - residual < ROUNDING:
            raise DataError(
                f"The range of the images ({_ranges(images)}) fits two normalisations equally well: {best}, "
                f"and {other}. Pass the one that was used: {_as_arguments(*known[best])}, or "
                f"{_as_arguments(*known[other])}."
            )
    return best, known[best]


def _pixels_apart(images: Tensor, one: _Constants, other: _Constants) -> float:
    """Return by how much the canonical extremes under two candidates differ at the most."""
    a, b = _extremes(images, *one), _extremes(images, *other)
    return max(abs(p - q) for x, y in zip(a, b, strict=True) for p, q in zip(x, y, strict=True))


def _nothing_fits(images: Tensor, count: str, note: str | None) -> str:
    nearest, miss = "", math.inf
    for name, (mean, std) in KNOWN.items():
        if len(mean) in (1, images.shape[1]):
            lows, highs = _extremes(images, mean, std)
            worst = max(abs(v) for v in [*lows, *(h - 1 for h in highs)])
            if worst < miss:
                span = f"{min(lows):.3g} to {max(highs):.3g}"
                nearest, miss = f"{name}, under which the pixels would span {span} instead of 0 to 1", worst
    because = f" Also, {note}." if note else ""
    return (
        f"The images are not in [0, 1], and no known normalisation fits: {_ranges(images)} ({count}). The "
        f"nearest is {nearest}.{because} Pass the mean and std that they were normalised with, in units of "
        f"[0, 1], for example {_as_arguments(*KNOWN['ImageNet mean and std'])}; or images in [0, 1]."
    )


def _ranges(images: Tensor) -> str:
    names = ("red", "green", "blue") if images.shape[1] == 3 else ("values",)
    low, high = images.amin((0, 2, 3)).tolist(), images.amax((0, 2, 3)).tolist()
    return ", ".join(f"{n} {a:.4g} to {b:.4g}" for n, a, b in zip(names, low, high, strict=True))


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{v:.4g}" for v in values)


def _as_arguments(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    def shown(values: tuple[float, ...]) -> str:
        return f"{values[0]:.4g}" if len(values) == 1 else f"({_numbers(values)})"

    return f"mean={shown(mean)}, std={shown(std)}"
