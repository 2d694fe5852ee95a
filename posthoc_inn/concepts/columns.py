"""Columns of attributes as tensors: which values are categories, which are continuous, which are missing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from posthoc_inn.errors import DataError

MISSING = -1
"""Category of an image whose value is not known: it takes no part in pairs of that concept."""
MISSING_WORDS = frozenset({"", "na", "n/a", "#n/a", "<na>", "nan", "nat", "none", "null", "-", "--", "?", "."})
"""What stands for a missing value in texts and tables, in any case."""

_YES_NO = (("no", "yes"), ("n", "y"), ("false", "true"), ("f", "t"))
_WHOLE = re.compile(r"[+-]?[0-9]+")
# Not Python's own rule, which reads 1_2 as 12.
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?inf(inity)?", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_LARGEST = 2**63 - 1


def as_column(values: Any, name: str) -> Tensor:
    """Return a column as int64 codes (N,), -1 missing, or as floats (N,) or (N, d), NaN missing.

    Lists, NumPy arrays and pandas columns are read alike. Texts that are all numbers are numbers, as in a table.

    Raises:
        DataError: It is neither numbers nor texts.

    >>> as_column(["red", "", "blue", "red"], "color").tolist(), as_column([True, None, False], "hat").tolist()
    ([1, -1, 0, 1], [1, -1, 0])
    """
    values = _plain(values)
    if isinstance(values, list):
        scalars = [_scalar(v) for v in values]
        if any(isinstance(v, (list, tuple)) and v and isinstance(v[0], (str, bytes)) for v in scalars):
            raise DataError(f"The attribute {name!r} has several texts an image; pass one, or a column for each.")
        if all(v is None or isinstance(v, (str, bool, int, float)) for v in scalars):
            return _of_scalars(scalars, name)
    try:
        column = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"The attribute {name!r} is neither numbers nor texts: {error}.") from error
    if column.is_complex() or column.ndim not in (1, 2) or (column.ndim == 2 and not column.is_floating_point()):
        raise DataError(
            f"The attribute {name!r} has the shape {tuple(column.shape)} and {column.dtype}; accepted are categories "
            "(N,) as whole numbers, booleans or texts, and floating-point values (N,) or (N, d)."
        )
    return column.double() if column.is_floating_point() else column.long()


def _plain(values: Any) -> Any:
    """Return a list, or what PyTorch reads without loss: a tensor, or an array of numbers."""
    import numpy as np

    if isinstance(values, Tensor):
        return values
    if callable(getattr(values, "to_numpy", None)):
        values = values.to_numpy()
    if isinstance(values, np.ndarray):
        # A mask, and whole numbers above PyTorch's largest, would be lost.
        if np.ma.isMaskedArray(values) or values.dtype.kind not in "biufc" or values.dtype == np.uint64:
            return values.astype(str).tolist() if values.dtype.kind in "mM" else values.tolist()
        # An array read from a file may be read-only, or of another byte order.
        return np.array(values, dtype=values.dtype.newbyteorder("="))
    return list(values) if isinstance(values, (list, tuple)) else values


def _scalar(value: Any) -> Any:
    """Return one value as Python's own, None where it is missing; what is no single value stays as it is."""
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, str):
        value = value.strip()
        return None if is_missing(value) else value
    is_unknown = value is None or type(value).__name__ in ("NAType", "NaTType")
    return None if is_unknown or (isinstance(value, float) and value != value) else value


def _of_scalars(values: list[Any], name: str) -> Tensor:
    known = [v for v in values if v is not None]
    if any(isinstance(v, str) for v in known) or any(isinstance(v, int) and abs(v) > _LARGEST for v in known):
        return text_column(["" if v is None else str(v) for v in values], name)[0]
    if any(isinstance(v, float) for v in known) or not known:
        return torch.tensor([float("nan") if v is None else float(v) for v in values], dtype=torch.float64)
    return torch.tensor([MISSING if v is None else int(v) for v in values])


def is_missing(text: str) -> bool:
    """Whether a text stands for a missing value.

    >>> is_missing(" N/A "), is_missing("nano")
    (True, False)
    """
    return text.strip().lower() in MISSING_WORDS


def text_column(cells: Sequence[str], name: str, *, decimal_comma: bool = False) -> tuple[Tensor, list[str]]:
    """Return a column of texts as numbers, where all of them are, or as categories; and what a user has to know.

    Args:
        cells: The texts, N.
        name: Of the column.
        decimal_comma: Whether 0,5 may be a number.

    Returns:
        Codes (N,) int64, -1 missing, or floats (N,), NaN missing; and sentences, none where there was no choice.

    >>> text_column(["-1", "1", "NA"], "smile")
    (tensor([ 0,  1, -1]), ["In 'smile', -1 and 1 are read as no and yes."])
    """
    # Different cells are few where rows are many.
    cleaned = {cell: None if is_missing(cell) else cell.strip() for cell in set(cells)}
    known = {text for text in cleaned.values() if text is not None}
    notes: list[str] = []
    decimals = _decimals(known, decimal_comma, name, notes)
    codes: dict[str, int] | dict[str, float]
    if known and all(_WHOLE.fullmatch(t) for t in known) and _are_numbers(known):
        codes = _whole({t: int(t) for t in known}, name, notes)
    elif decimals and None in cleaned.values() and all(re.fullmatch(r"[+-]?[0-9]{1,15}\.0", t) for t in known):
        # pandas writes whole numbers so where some are missing.
        notes.append(f"In {name!r}, numbers like {min(known)} beside missing ones are read as whole: categories.")
        codes = _whole({t: int(value) for t, value in decimals.items()}, name, notes)
    elif decimals:
        unknown = float("nan")
        return torch.tensor(
            [unknown if (t := cleaned[c]) is None else decimals[t] for c in cells], dtype=torch.float64
        ), notes
    else:
        codes = _categories(known, name, notes)
    return torch.tensor([MISSING if (t := cleaned[c]) is None else codes[t] for c in cells], dtype=torch.long), notes


def _decimals(known: set[str], decimal_comma: bool, name: str, notes: list[str]) -> dict[str, float]:
    """Return the numbers that decimal texts stand for; empty where not all of them do, or all are whole."""
    dotted = {t: t.replace(",", ".") if decimal_comma and _DECIMAL_COMMA.fullmatch(t) else t for t in known}
    if not all(_DECIMAL.fullmatch(t) for t in dotted.values()) or all(_WHOLE.fullmatch(t) for t in known):
        return {}
    if any("," in t for t in known):
        notes.append(f"In {name!r}, the comma is read as a decimal point.")
    return {t: float(number) for t, number in dotted.items()}


def _are_numbers(texts: set[str]) -> bool:
    """Whether whole numbers fit 64 bits and different texts are different numbers: 01 beside 1 is no number."""
    found = {int(t) for t in texts if len(t) < 20}
    return len(found) == len({t.lstrip("+") for t in texts}) and max(map(abs, found), default=0) <= _LARGEST


def _whole(values: dict[str, int], name: str, notes: list[str]) -> dict[str, int]:
    """Return text -> code, from the whole number that each text stands for."""
    known = set(values.values())
    if known == {-1, 1}:
        notes.append(f"In {name!r}, -1 and 1 are read as no and yes.")
    if known <= {-1, 1}:
        return {t: int(v > 0) for t, v in values.items()}
    if -1 in known and min(known) < -1:
        # A scale with other values below zero: here -1 is one of them.
        notes.append(f"In {name!r}, -1 is read as a value, since there are others below zero.")
        ranks = {v: rank for rank, v in enumerate(sorted(known))}
        return {t: ranks[v] for t, v in values.items()}
    return values


def _categories(known: set[str], name: str, notes: list[str]) -> dict[str, int]:
    folded = {t.lower() for t in known}
    if any(folded <= set(pair) for pair in _YES_NO):
        words = {word: code for pair in _YES_NO for code, word in enumerate(pair)}
        return {t: words[t.lower()] for t in known}
    codes = {text: code for code, text in enumerate(sorted(known))}
    if len(folded) < len(codes):
        word = Counter(text.lower() for text in codes).most_common(1)[0][0]
        alike = [text for text in codes if text.lower() == word]
        notes.append(f"In {name!r}, {' and '.join(alike[:3])} count as different values.")
    return codes


def unknown_count(column: Tensor) -> int:
    """Return how many of a column's values are missing."""
    if column.is_floating_point():
        return int((~torch.isfinite(column.reshape(len(column), -1)).all(dim=1)).sum())
    return int((column == MISSING).sum())
