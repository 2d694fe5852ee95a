"""What the output of a model is: scores of classes, a set of labels, an embedding, or nothing to compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from posthoc_inn.errors import ConfigError
from posthoc_inn.features.structure import children, shape_text

PredictionKind = Literal["auto", "classes", "multilabel", "embedding", "none"]
KINDS: tuple[str, ...] = get_args(PredictionKind)

IMAGENET = 1000
"""Classes of most published networks."""
RIGHT = 0.5
"""Share of labels that arg-max hits by which scores of classes are recognised."""
FEATURES = frozenset(
    {
        *("relu", "leaky_relu", "elu", "gelu", "silu", "mish", "hardswish", "tanh"),
        *("native_layer_norm", "native_group_norm", "native_batch_norm", "cudnn_batch_norm"),
        "_native_batch_norm_legit_no_training",
    }
)
"""Operations that features end in, and scores hardly ever."""
LINEAR = frozenset({"addmm", "mm", "linear", "convolution", "bmm", "matmul"})
"""Operations that end in logits, even where all happen to lie in [0, 1]."""


@dataclass(frozen=True)
class Recognised:
    """What a prediction was taken for.

    Attributes:
        kind: "classes", "multilabel", "embedding" or "none".
        why: What it was recognised by.
        threshold: What a label's value must exceed, where they are labels.
        is_given: Whether the user said so.
        is_sure: Whether it can hardly be anything else.

    >>> Recognised("classes", "rows sum to 1").kind
    'classes'
    """

    kind: str
    why: str
    threshold: float | None = None
    is_given: bool = False
    is_sure: bool = True


def is_classification(output: Tensor) -> bool:
    """Whether the model's output (B, ...) can be one row of class scores per image, as far as its shape tells."""
    return output.ndim == 2 and output.shape[1] >= 2


def is_one_each(result: Any, rows: int) -> bool:
    """Whether a model's result is a list with one structure for each of `rows` images, as detectors return it.

    >>> is_one_each([{"boxes": torch.zeros(3, 4)}, {"boxes": torch.zeros(1, 4)}], 2)
    True
    """
    return isinstance(result, (list, tuple)) and len(result) == rows and all(children(r) is not None for r in result)


def fits(kind: str, output: Tensor) -> bool:
    """Whether an output (B, ...) has a shape that can be of this kind."""
    values = output[0].numel() if output.ndim >= 2 and len(output) else 0
    return {
        "classes": is_classification(output),
        "multilabel": output.ndim == 2 and values >= 1,
        "embedding": values >= 2,
    }.get(kind, True)


def check_kind(kind: str, output: Tensor) -> None:
    """Check that an output (B, ...) can be what the user says it is.

    Raises:
        ConfigError: It cannot.
    """
    if fits(kind, output):
        return
    needed = {"classes": "(B, classes) with 2 or more", "multilabel": "(B, labels)"}.get(kind, "2 or more values")
    others = ", ".join(repr(k) for k in KINDS if k not in ("auto", kind) and fits(k, output))
    raise ConfigError(
        f"prediction_kind={kind!r} needs {needed} an image, and the model's prediction is {shape_text(output.shape)}; "
        f"pass {others}, or name another tensor with prediction=."
    )


def recognise(output: Tensor, *, head: str = "", labels: Any = None, classes: int | None = None) -> Recognised:
    """Tell what the prediction of the first images is, from its values, its last operation and the data's labels.

    Args:
        output: The model's prediction for some images, (B, ...).
        head: The operation that it ends in, as far as it is known.
        labels: Of the same images: integers (B,), rows (B, L), a mapping to such, or None.
        classes: How many classes the data has, as far as it is known.

    >>> recognise(torch.tensor([[0.1, 0.9], [0.7, 0.3]])).kind
    'classes'
    >>> recognise(torch.nn.functional.normalize(torch.randn(4, 8), dim=1)).kind
    'embedding'
    """
    if output.ndim == 2 and output.shape[1] == 1:
        return Recognised("none", "one number an image; as 'multilabel' it is compared as yes or no")
    if not is_classification(output):
        return Recognised("none", f"its shape is {shape_text(output.shape)}, not one row of scores an image")
    values, width = output.detach().double().cpu(), output.shape[1]
    if not bool(torch.isfinite(values).all()):
        return Recognised("classes", f"rows of {width} numbers, not all finite", is_sure=False)
    if bool((values >= 0).all()) and _near(values.sum(1), 1.0):
        return Recognised("classes", "rows sum to 1")
    if bool((values <= 1e-6).all()) and _near(values.exp().sum(1), 1.0):
        return Recognised("classes", "logarithms of probabilities that sum to 1")
    return (
        _by_label_rows(values, head, _rows_of(labels, width))
        or _by_values(values, head, labels, classes)
        or Recognised("classes", f"rows of {width} numbers, and nothing tells what they are", is_sure=False)
    )


def _near(values: Tensor, wanted: float) -> bool:
    # Half precision keeps about three digits.
    return bool(((values - wanted).abs() < 5e-3).all())


def _rows_of(labels: Any, width: int) -> Tensor | None:
    """Return labels as rows (B, width), where they are as many numbers an image as the prediction has."""
    if isinstance(labels, Mapping):
        columns = [v for v in labels.values() if isinstance(v, Tensor) and v.ndim == 1]
        if len(columns) != len(labels):
            return None
        labels = torch.stack([c.double() for c in columns], 1) if columns else None
    if isinstance(labels, Tensor) and labels.ndim == 2 and labels.shape[1] == width:
        return labels.double().cpu()
    return None


def _by_label_rows(values: Tensor, head: str, rows: Tensor | None) -> Recognised | None:
    if rows is None:
        return None
    width = values.shape[1]
    if bool((rows >= 0).all()) and _near(rows.sum(1), 1.0):
        return Recognised("classes", f"the data's labels are probabilities of {width} classes")
    if set(rows.unique().tolist()) <= {-1.0, 0.0, 1.0}:
        # Two say little: a classifier with two classes has as many outputs.
        if width < 3 and head != "sigmoid":
            return None
        return Recognised("multilabel", f"the data has {width} yes-or-no labels too", threshold_of(values, head))
    return Recognised("none", f"the data's labels are rows of {width} numbers too, not classes")


def _by_values(values: Tensor, head: str, labels: Any, classes: int | None) -> Recognised | None:
    width = values.shape[1]
    if _near(values.norm(dim=1), 1.0):
        return Recognised("embedding", "rows have length 1")
    is_bounded = bool(((values >= 0) & (values <= 1)).all())
    if classes == width:
        return Recognised("classes", f"the data has {width} classes too")
    if head == "sigmoid" or (not head and is_bounded and bool((values > 0.5).sum() > len(values))):
        return Recognised("multilabel", "values in [0, 1], whose rows do not sum to 1", 0.5)
    if _hits(values, labels):
        return Recognised("classes", "the largest value is at the image's label")
    if width == IMAGENET:
        return Recognised("classes", "as many numbers as ImageNet has classes")
    if head in FEATURES:
        return Recognised("embedding", f"it ends in {_plain(head)}, as features do", is_sure=False)
    return None


def _hits(values: Tensor, labels: Any) -> bool:
    """Whether arg-max is right about any of the data's labels."""
    for column in labels.values() if isinstance(labels, Mapping) else (labels,):
        is_class = isinstance(column, Tensor) and column.ndim == 1 and not column.is_floating_point()
        if is_class and len(column.unique()) >= 2:
            right = float((values.argmax(1) == column.cpu()).double().mean())
            most = float(column.unique(return_counts=True)[1].max()) / len(column)
            if right >= max(RIGHT, most + 0.1):
                return True
    return False


def _plain(head: str) -> str:
    return head.strip("_").removeprefix("native_").removeprefix("cudnn_").removesuffix("_legit_no_training")


def threshold_of(values: Tensor, head: str = "") -> float:
    """Return what a label's value must exceed: 0.5 for probabilities, 0 for logits."""
    return 0.5 if head not in LINEAR and bool(((values >= 0) & (values <= 1)).all()) else 0.0


def given(kind: str, output: Tensor, head: str = "") -> Recognised:
    """Return a user's word about the prediction (B, ...) of the first images.

    Raises:
        ConfigError: The shape is that of something else.
    """
    check_kind(kind, output)
    threshold = threshold_of(output.detach(), head) if kind == "multilabel" else None
    return Recognised(kind, "as prediction_kind says", threshold, is_given=True)


def said(output: Tensor, kind: str, threshold: float | None = None) -> Tensor | None:
    """Return what is compared of a prediction (B, ...), on the CPU.

    Returns:
        The class (B,); the set of labels (B, L), boolean; the embedding (B, D); or None where nothing is compared.

    >>> said(torch.tensor([[0.2, 3.0, -1.0]]), "classes"), said(torch.tensor([[0.2, 3.0, -1.0]]), "multilabel")
    (tensor([1]), tensor([[ True,  True, False]]))
    """
    if not fits(kind, output):
        return None
    if kind == "classes":
        return output.argmax(1).cpu()
    if kind == "multilabel":
        return (output > (threshold_of(output) if threshold is None else threshold)).cpu()
    return output.flatten(1).float().cpu() if kind == "embedding" else None


def same(a: Tensor, b: Tensor) -> Tensor:
    """Return which rows are the same class, or exactly the same set of labels, (B,), boolean."""
    return (a == b) if a.ndim == 1 else (a == b).all(1)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return the Jaccard index of sets of labels (B, L), (B,), float64; two empty sets are the same.

    >>> overlap(torch.tensor([[True, True, False], [False, False, False]]), torch.tensor([[True, False, False]] * 2))
    tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    either = (a | b).sum(1).double()
    return torch.where(either > 0, (a & b).sum(1).double() / either.clamp_min(1), torch.ones_like(either))
