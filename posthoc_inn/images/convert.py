"""Taking users' samples and batches apart: where images and labels are, and what is wrong with them."""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from posthoc_inn.errors import DataError, listed, shown
from posthoc_inn.images.image_files import pil_to_tensor
from posthoc_inn.names import encodable

IMAGE_KEYS = ("image", "images", "pixel_values", "x", "input", "inputs", "img")
LABEL_KEYS = ("label", "labels", "y", "target", "targets")

Labels: TypeAlias = "Tensor | dict[str, Tensor] | None"


@dataclass
class Sample:
    """One image or one batch as read from the user's data.

    Attributes:
        images: (C, H, W) of one image, or (B, C, H, W) of a batch; dtype as it came.
        labels: The raw label, or None.
        is_batch: Which of the two.
        notes: What was converted or left out, in words.
        is_per_item: Whether the labels of a batch are a list with one entry an image.
    """

    images: Tensor
    labels: Any
    is_batch: bool
    notes: tuple[str, ...] = ()
    is_per_item: bool = False


def _is_image_like(part: Any) -> bool:
    return isinstance(part, Image.Image) or (isinstance(part, (Tensor, np.ndarray)) and part.ndim >= 2)


def _is_text(part: Any) -> bool:
    return isinstance(part, (str, bytes))


def _is_picture(part: Any) -> bool:
    """Say whether a part of a tuple can be nothing but an image, or several."""
    if isinstance(part, (list, tuple)):
        return bool(part) and all(_is_picture(p) for p in part)
    return isinstance(part, Image.Image) or (isinstance(part, (Tensor, np.ndarray)) and part.ndim >= 3)


def find_parts(parts: Sequence[Any]) -> tuple[int, int | None, str | None]:
    """Return where the image and the label (or None) are in a tuple, and what to say of an unusual order.

    The first is the image; another one where the first is none and it alone is one. The label follows an image that
    comes first. Where the image does not, the label is the only other part, or the only one that is no text.

    >>> find_parts((7, torch.rand(3, 8, 8)))[:2], find_parts(("a.png", torch.rand(3, 8, 8), 7))[:2]
    ((1, 0), (1, 2))
    """
    pictures = [k for k, part in enumerate(parts) if _is_picture(part)]
    if len(pictures) != 1 or pictures[0] == 0:
        return 0, 1 if len(parts) > 1 else None, None
    image = pictures[0]
    others = [k for k in range(len(parts)) if k != image]
    label = next((chosen[0] for chosen in (others, _without_texts(parts, others)) if len(chosen) == 1), None)
    told = f"The data yields tuples in an order of their own: number {image + 1} is taken as the image"
    if label is not None:
        return image, label, f"{told}, number {label + 1} as the label."
    return image, None, f"{told}, and none as the label, as {len(others)} others might be it. Yield (image, label)."


def _without_texts(parts: Sequence[Any], chosen: Sequence[int]) -> list[int]:
    return [k for k in chosen if as_texts(parts[k]) is None and not _is_text(parts[k])]


def take_apart(sample: Any) -> tuple[Any, Any]:
    """Return the image part and the label part (or None) of whatever a data set or loader yields.

    Raises:
        DataError: A dict without a known image key (the message lists its keys), or an empty tuple.
    """
    if isinstance(sample, Mapping):
        found = next((k for k in IMAGE_KEYS if k in sample), None)
        if found is None:
            raise DataError(
                f"The data yields dicts with the keys {listed([repr(k) for k in sample])}, none of which is "
                f"known to hold images; rename one to 'image' (accepted: {', '.join(IMAGE_KEYS)}), or yield "
                f"(image, label)."
            )
        label_key = next((k for k in LABEL_KEYS if k in sample), None)
        if label_key is not None:
            return sample[found], sample[label_key]
        rest = {str(k): v for k, v in sample.items() if k != found}
        return sample[found], rest or None
    if isinstance(sample, (tuple, list)):
        if not sample:
            raise DataError("The data yields empty tuples; yield an image, (image, label) or a dict.")
        image, label, _ = find_parts(sample)
        return sample[image], None if label is None else sample[label]
    return sample, None


def _note_on(sample: Any) -> tuple[str, ...]:
    """Return what to say of the order of a tuple's parts."""
    note = find_parts(sample)[2] if isinstance(sample, (tuple, list)) and sample else None
    return (note,) if note else ()


def _check_is_picture(images: Any, sample: Any, where: str) -> None:
    """Raise where nothing in a tuple is an image, naming each part."""
    is_value = images is None or isinstance(images, (numbers.Number, str, bytes))
    is_value = is_value or (isinstance(images, (Tensor, np.ndarray)) and images.ndim <= 1)
    if isinstance(sample, (tuple, list)) and len(sample) > 1 and is_value:
        hint = " Read files with load_image_files or ImageFiles." if _is_text(images) else ""
        told = "; ".join(f"{k}. {_kind(part)}" for k, part in enumerate(sample[:5], 1))
        raise DataError(
            f"{where.capitalize()} is a {type(sample).__name__} of {told}. The image comes first, and here it is not "
            f"clear which part is one; yield (image, label) or a dict with the key 'image'.{hint}"
        )


def _kind(part: Any) -> str:
    if isinstance(part, (Tensor, np.ndarray)):
        return f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}"
    return _short(part)


def read_sample(sample: Any, *, where: str, expect_batch: bool = False) -> Sample:
    """Find images and labels in whatever a data set or loader yields.

    Args:
        sample: An image, a batch of images, (images, labels, ...), a dict, or a list of such samples.
        where: Words that name the sample in errors, such as "batch 3".
        expect_batch: A three-dimensional tensor is then an error rather than a single image.

    Raises:
        DataError: Nothing in it is an image, or its images have different sizes.
    """
    if isinstance(sample, list) and sample and _holds_samples(sample):
        return collate([read_sample(s, where=where) for s in sample], where=where)
    images, labels = take_apart(sample)
    notes = _note_on(sample)
    _check_is_picture(images, sample, where)
    if isinstance(images, (list, tuple)):
        items = [read_sample(i, where=where) for i in images]
        if not items:
            raise DataError(f"There are no images in {where}; it holds an empty {type(images).__name__}.")
        batch = collate(items, where=where)
        return Sample(batch.images, labels, True, (*notes, *batch.notes), is_per_item=True)
    if isinstance(images, Image.Image):
        return Sample(pil_to_tensor(images), labels, False, (*notes, "Pillow images were converted to [0, 1]."))
    tensor = as_tensor(images, where=where)
    is_batch = expect_batch or tensor.ndim > 3
    return Sample(tensor, labels, is_batch, notes)


def _holds_samples(sample: list[Any]) -> bool:
    """Say whether a list holds samples, rather than [images, labels] as torch's default_collate makes it."""
    if all(isinstance(s, (tuple, Mapping, Image.Image)) for s in sample):
        # list(zip(*items)), that is [(image, image, ...), (label, label, ...)], is one transposed batch.
        columns = [s for s in sample if isinstance(s, tuple) and s]
        if len(columns) != len(sample) or len(sample) < 2:
            return True
        images = [[_is_image_like(p) for p in column] for column in columns]
        is_transposed = all(all(found) or not any(found) for found in images)
        return not is_transposed or all(map(all, images)) or not any(map(any, images))
    return len(sample) > 1 and all(isinstance(s, (Tensor, np.ndarray)) and s.ndim == 3 for s in sample)


def as_tensor(images: Any, *, where: str) -> Tensor:
    """Turn a tensor, an array or anything else with an array's interface into a plain tensor, dtype kept.

    Raises:
        DataError: It is no array of numbers, or one whose values are not all there.
    """
    if isinstance(images, Tensor):
        if not _is_dense(images):
            kind = (
                "nested" if images.is_nested else "without values (on the meta device)" if images.is_meta else "sparse"
            )
            raise DataError(f"{where.capitalize()} holds a tensor that is {kind}; pass dense ones, all of one size.")
        return _plain(images)
    if isinstance(images, np.ma.MaskedArray) and images.dtype.names is None and np.ma.is_masked(images):
        raise DataError(f"{where.capitalize()} holds an array with masked values; fill them, with array.filled(0).")
    if isinstance(images, (numbers.Number, str, bytes)) or images is None:
        hint = " Read files with load_image_files or ImageFiles." if _is_text(images) else ""
        raise DataError(
            f"{where.capitalize()} holds {_short(images)} where an image is expected; yield an image, "
            f"(image, label) or a dict with the key 'image'.{hint}"
        )
    try:
        return _copied(np.asarray(images))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where.capitalize()} holds {_short(images)} where an image is expected; yield a tensor (C, H, "
            f"W), an array or a Pillow image."
        ) from error


def _copied(array: np.ndarray[Any, Any]) -> Tensor:
    # Copied: torch warns about memory that it may not write to (memory maps, Pillow's buffers), and knows
    # no foreign byte order.
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta


def _plain(tensor: Tensor) -> Tensor:
    return (tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)).detach()


def _short(value: Any) -> str:
    return f"{type(value).__name__} {shown(repr(value), 43)}"


def collate(samples: Sequence[Sample], *, where: str) -> Sample:
    """Stack single images into a batch.

    Raises:
        DataError: They differ in size, channels or dtype.
    """
    if any(s.is_batch for s in samples):
        raise DataError(
            f"{where.capitalize()} mixes single images and batches; items must be single images (C, H, W). "
            f"For a data set of ready-made batches pass DataLoader(data, batch_size=None)."
        )
    first = samples[0].images
    for i, s in enumerate(samples):
        if s.images.shape != first.shape:
            raise DataError(ragged(tuple(first.shape), tuple(s.images.shape), f"images 0 and {i} of {where}"))
        if s.images.dtype != first.dtype:
            raise DataError(
                f"{where.capitalize()} mixes {first.dtype} and {s.images.dtype} images; convert all to one of them."
            )
    notes = tuple(dict.fromkeys(n for s in samples for n in s.notes))
    labels = [s.labels for s in samples]
    return Sample(torch.stack([s.images for s in samples]), labels, True, notes, is_per_item=True)


def ragged(a: tuple[int, ...], b: tuple[int, ...], which: str) -> str:
    """Return the message for two images that cannot share a batch."""
    if len(a) == len(b) >= 3 and a[-2:] == b[-2:]:
        return (
            f"The images differ in channels: {a} and {b} ({which}); convert all to colour or all to grey, "
            f"for example image.convert('RGB')."
        )
    return (
        f"The images differ in size: {a} and {b} ({which}); resize them to one size, for example with "
        f"torchvision.transforms.Resize((64, 64)) or with ImageFiles(folder, size=64)."
    )


def check_images(images: Tensor, *, where: str) -> None:
    """Raise unless `images` can be used: (B, C, H, W), 1 or 3 channels, real numbers, all finite.

    Raises:
        DataError: They cannot; the message says what to do.
    """
    shape = tuple(images.shape)
    if images.is_complex() or images.dtype == torch.bool:
        raise DataError(
            f"The images of {where} are {images.dtype}; pass uint8 (0 to 255) or floating-point ones, for "
            f"example {'images.abs()' if images.is_complex() else 'images.float()'}."
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise DataError(
            f"The images of {where} are {images.dtype}; pass uint8 (0 to 255) or floating-point ones, for "
            f"example images.to(torch.uint8) if the values are 0 to 255."
        )
    if images.ndim != 4:
        hint = {
            2: "One grey picture (H, W) needs batch and channel: images[None, None]; reshape vectors.",
            3: "Grey ones (B, H, W) need a channel: images[:, None]; one (C, H, W) a batch: images[None].",
        }.get(images.ndim, "Videos and volumes have to be cut into pictures first.")
        raise DataError(f"The images of {where} have the shape {shape}, expected (B, C, H, W). {hint}")
    if 0 in shape:
        raise DataError(f"The images of {where} are empty: shape {shape}.")
    if shape[1] not in (1, 3):
        if shape[3] in (1, 3, 4):
            hint = "Channels seem to come last: put them first with images.permute(0, 3, 1, 2)" + (
                ", and leave out transparency: images[:, :3]." if shape[3] == 4 else "."
            )
        elif shape[1] == 4:
            hint = "If the fourth is transparency, leave it out: images[:, :3]."
        else:
            hint = "Choose or combine channels so that 1 (grey) or 3 (colour) remain."
        raise DataError(f"The images of {where} have {shape[1]} channels, shape {shape}; 1 or 3 are accepted. {hint}")
    if images.is_floating_point() and not bool(torch.isfinite(images).all()):
        nan, inf = int(images.isnan().sum()), int(images.isinf().sum())
        bad = (~torch.isfinite(images)).flatten(1).any(1)
        raise DataError(
            f"{nan} values are NaN and {inf} infinite among the {images.numel()} of {where}, in "
            f"{int(bad.sum())} of its {len(bad)} images (first: image {int(bad.int().argmax())}); clean the "
            f"data, or look for a division by zero in its transform."
        )


TEXT_CLASS = "class"
"""Name of a label that comes as text."""


def as_texts(raw: Any) -> list[str] | None:
    """Return labels that are texts, one an image, as a list; None where they are no such thing."""
    if isinstance(raw, np.ndarray) and raw.dtype.kind in "USO" and raw.ndim == 1:
        raw = raw.tolist()
    is_list = isinstance(raw, (list, tuple)) and all(r is None or _is_text(r) for r in raw)
    if not is_list or all(r is None for r in raw):
        return None
    return [r.decode("utf-8", "replace") if isinstance(r, bytes) else str(r or "") for r in raw]


def code_of(text: str) -> int:
    """Return a number for a text, the same in every process; -1, which stands for missing, where it is blank.

    >>> code_of(" cat") == code_of("cat") != code_of("dog"), code_of("")
    (True, -1)
    """
    text = text.strip()
    return int.from_bytes(hashlib.sha256(encodable(text).encode()).digest()[:7], "big") if text else -1


def as_labels(sample: Sample) -> tuple[Labels, str | None]:
    """Turn the raw labels of a batch into tensors where they are numbers.

    Returns:
        A tensor (B, ...), a dict of such tensors, or None; and a note on what was left out, or None. Texts, one an
        image, become numbers under the name "class": which of the model's classes they mean is not known.
    """
    raw, count = sample.labels, len(sample.images)
    texts = as_texts(raw)
    if texts is not None and len(texts) == count:
        return {TEXT_CLASS: torch.tensor([code_of(text) for text in texts])}, None
    if raw is None or (isinstance(raw, (list, tuple)) and all(r is None for r in raw)):
        return None, None
    if isinstance(raw, (list, tuple)) and raw:
        if all(isinstance(r, Mapping) for r in raw):
            keys = [k for k in raw[0] if all(k in r for r in raw)]
            raw = {k: [r[k] for r in raw] for k in keys}
        elif not sample.is_per_item and all(isinstance(r, (Tensor, np.ndarray)) for r in raw):
            # Several labels an image, as default_collate transposes them.
            raw = {f"label_{i}": column for i, column in enumerate(raw)}
    if isinstance(raw, Mapping):
        named = {str(k): _label_tensor(v, count) for k, v in raw.items()}
        left = [k for k, v in named.items() if v is None]
        kept = {k: v for k, v in named.items() if v is not None}
        note = f"Labels left out because they are not one number or vector an image: {listed(left)}."
        return kept or None, note if left else None
    tensor = _label_tensor(raw, count)
    if tensor is None:
        return None, "Labels left out because they are not one number or vector an image."
    return tensor, None


def _label_tensor(raw: Any, count: int) -> Tensor | None:
    """Return labels as a tensor (count, ...), or None where they are no such thing."""
    if isinstance(raw, (list, tuple)):
        rows = [_numbers(r) for r in raw]
        kept = [r for r in rows if r is not None]
        if len(kept) != len(rows) or not kept or len({r.shape for r in kept}) != 1:
            return None
        return torch.stack(kept) if len(kept) == count else None
    tensor = _numbers(raw)
    return tensor if tensor is not None and tensor.ndim > 0 and len(tensor) == count else None


def _numbers(raw: Any) -> Tensor | None:
    """Return numbers in any of their guises as a plain tensor, or None."""
    if isinstance(raw, Tensor):
        return _plain(raw) if _is_dense(raw) else None
    if raw is None or isinstance(raw, (str, bytes, Mapping)):
        return None
    try:
        array = np.asarray(raw)
    except (TypeError, ValueError):
        return None
    if array.dtype.kind not in "biuf":
        return None
    # Python's floats become torch's default type, as default_collate has it, not double.
    is_python = isinstance(raw, (float, list, tuple)) and array.dtype == np.float64
    with np.errstate(over="ignore"):
        return _copied(array.astype(np.float32) if is_python else array)
