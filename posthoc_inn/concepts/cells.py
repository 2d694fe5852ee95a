"""The cells of a table in a text file: what separates them, where the header is, and which line a row is from."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from posthoc_inn.errors import DataError

DELIMITERS = (",", ";", "\t", "|", " ")
IMAGE_FILE = re.compile(r".+\.(jpe?g|png|bmp|gif|tiff?|webp|ppm|pgm|dcm|npy)", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?")


@dataclass
class Cells:
    """What the file holds: a header, rows of as many cells, and the line that each row ends in."""

    path: Path
    delimiter: str
    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    notes: list[str]

    def column(self, k: int) -> list[str]:
        """Return the cells of column k below its header."""
        return [row[k] for row in self.rows]


def read_cells(path: Path, delimiter: str | None = None) -> Cells:
    """Read the cells of a table.

    Args:
        path: The file: UTF-8, with or without a mark, or UTF-16 with one.
        delimiter: What separates cells; found by default.

    Raises:
        DataError: The file cannot be read, is ragged, or has no usable header.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except OSError as error:
        raise DataError(f"The table {path} cannot be read: {error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"The table {path} cannot be read: {error}. Save it as a text file in UTF-8.") from error
    if "\0" in text:
        raise DataError(f"The table {path} cannot be read: it is no text. Save it as a text file in UTF-8.")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    notes: list[str] = []
    skipped, count = _count_line(lines)
    hint = re.fullmatch(r"sep=([,;\t|])", lines[skipped].strip(" "))
    if hint:  # Excel's own way to say it
        skipped, delimiter = skipped + 1, delimiter or hint[1]
    mark = _delimiter(path, lines[skipped:], delimiter)
    found = [(line + skipped, [c.strip() for c in row]) for line, row in _parse(path, lines[skipped:], mark)]
    if len(found) < 2:
        raise DataError(f"The table {path} needs a header of different names and at least one row below it.")
    header, rows, numbers = found[0][1], [row for _, row in found[1:]], [line for line, _ in found[1:]]
    header, rows = _even(path, header, rows, numbers)
    _check_header(path, header, rows)
    if count is not None and count != len(rows):
        notes.append(f"The table {path.name} says {count:,} rows in its first line, and has {len(rows):,}.")
    if mark == " ":
        notes.append(f"The table {path.name} is read as separated by blanks.")
    return Cells(path, mark, header, rows, numbers, notes)


def _count_line(lines: Sequence[str]) -> tuple[int, int | None]:
    """Return how many lines stand above the header, and the number of rows that CelebA's tables say there."""
    first = [(k, line.split()) for k, line in enumerate(lines[:50]) if line.strip()][:3]
    if len(first) < 3 or not re.fullmatch(r"[0-9]{1,12}", lines[first[0][0]].strip()):
        return 0, None
    is_celeba = len(first[2][1]) == len(first[1][1]) + 1 or any(d in lines[first[1][0]] for d in ",;\t|")
    return (first[1][0], int(first[0][1][0])) if is_celeba else (0, None)


def _parse(path: Path, lines: Sequence[str], delimiter: str) -> list[tuple[int, list[str]]]:
    """Return the rows that are not empty, each with the number of the line that it ends in.

    Raises:
        DataError: A quoted cell does not end.
    """
    try:
        return list(_rows(lines, delimiter))
    except csv.Error as error:
        raise DataError(f"The table {path} cannot be read: {error}. Does each quoted cell end?") from error


def _rows(lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    if delimiter == " ":
        for number, line in enumerate(lines, 1):
            parts = line.split()
            if '"' in line:
                found = re.findall(r'"((?:[^"]|"")*)"|(\S+)', line)
                parts = [plain or quoted.replace('""', '"') for quoted, plain in found]
            if parts:
                yield number, parts
        return
    # Strict: a quote that is never closed would otherwise take in the rest of the file.
    reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter, skipinitialspace=True, strict=True)
    for row in reader:
        if len(row) > 1 or (row and (row[0].strip() or '"' in lines[reader.line_num - 1])):
            yield reader.line_num, row


def _delimiter(path: Path, lines: Sequence[str], given: str | None) -> str:
    """Return what separates the cells: what splits the header and each row into equally many.

    `csv.Sniffer` guesses from the regularity of characters, and finds separators inside of words. Here every row has
    to agree, and where two separators would do, nobody guesses.
    """
    named = {"\\t": "\t", "tab": "\t", "space": " ", "comma": ",", "semicolon": ";"}
    if given is not None:
        mark = named.get(given.lower(), given)
        if mark not in DELIMITERS:
            raise DataError(f"The delimiter must be one of , ; tab | space, got {given!r}.")
        return mark
    header = next((line for line in lines if line.strip()), None)
    if header is None:
        return ","
    good, ragged = [], []
    for mark in [d for d in DELIMITERS[:-1] if d in header] or [" "]:
        try:
            rows = [row for _, row in _rows(lines, mark)]
        except csv.Error:
            return mark  # a quoted cell that does not end: said where the cells are read
        width, widths = len(rows[0]), {len(row) for row in rows[1:]}
        is_even = len(widths) <= 1 and widths <= {width, width + 1}
        if is_even and (width > 1 or widths == {2}):
            good.append(mark)
        elif mark != " ":
            ragged.append((width, mark))
    if len(good) > 1:
        told = " and ".join(repr(mark) for mark in good)
        raise DataError(
            f"The table {path} can be split evenly at {told}. Say which separates its cells, as in delimiter={good[0]}."
        )
    if good:
        return good[0]
    if ragged:
        return max(ragged)[1]
    _check_title(path, header, lines)
    # One column: any mark that splits no row does.
    for mark in DELIMITERS:
        try:
            if mark != " " and all(len(row) == 1 for _, row in _rows(lines, mark)):
                return mark
        except csv.Error:
            continue
    return ","


def _check_title(path: Path, header: str, lines: Sequence[str]) -> None:
    """Check that a first line without separators is a column's name, and no title over a table.

    Raises:
        DataError: Something splits all the other lines evenly.
    """
    for mark in DELIMITERS[:-1]:
        try:
            widths = {len(row) for _, row in list(_rows(lines, mark))[1:]}
        except csv.Error:
            continue
        if len(widths) == 1 and min(widths) > 1:
            raise DataError(
                f"The table {path} needs a header, and its first line, {header.strip()[:60]!r}, names one column where "
                f"{mark!r} splits the others into {min(widths)}. Remove what stands above the header; if there is one "
                f"column, say what else separates cells, as in delimiter={'|' if mark != '|' else ';'}."
            )


def _even(path: Path, header: list[str], rows: list[list[str]], lines: list[int]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of one length: a separator that ends each row, and an unnamed first column, are seen.

    Raises:
        DataError: A row has another number of cells than the header.
    """
    if all(len(row) == len(header) + 1 for row in rows):
        if all(not row[-1] for row in rows):
            rows = [row[:-1] for row in rows]
        elif len({row[0] for row in rows}) == len(rows):  # names or numbers of rows, as R and CelebA write them
            header = ["", *header]
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise DataError(f"Row {line} of the table {path} has {len(row)} cells, its header {len(header)}.")
    while len(header) > 1 and not header[-1] and all(not row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return header, rows


def _check_header(path: Path, header: list[str], rows: list[list[str]]) -> None:
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise DataError(
            f"The table {path} needs a header of different names: {twice[0] or 'an empty name'} is there "
            f"{header.count(twice[0])} times. Rename the columns."
        )
    named = [name for name in header if name]
    values = [{row[k] for row in rows} for k in range(len(header))]
    is_data = (
        any(IMAGE_FILE.fullmatch(name) for name in named)
        or all(_NUMBER.fullmatch(name) for name in named)
        or all(name in column for name, column in zip(header, values, strict=True))
    )
    if is_data:
        raise DataError(
            f"The table {path} needs a header of names, and its first line holds values: {', '.join(header)[:80]}. "
            "Put a line with the columns' names above it."
        )
    if "" in header[1:]:
        raise DataError(f"Column {header.index('', 1) + 1} of the table {path} has no name. Give it one, or remove it.")
