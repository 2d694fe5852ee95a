"""Tables of attributes in text files: separators, headers, file names, and what is left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from posthoc_inn.concepts.cells import IMAGE_FILE, Cells, read_cells
from posthoc_inn.concepts.columns import is_missing, text_column, unknown_count
from posthoc_inn.concepts.matching import match_rows
from posthoc_inn.errors import DataError, UnknownNameError, quoted, suggest

TABLE_ENDINGS = (".csv", ".tsv", ".tab", ".txt")
FILE_COLUMNS = (
    *("image_id", "image", "file", "filename", "name", "file_name", "path", "filepath", "file_path", "image_path"),
    *("image_name", "image_file", "imagefile", "img", "img_path", "img_name", "imagename", "imagepath", "isic_id"),
)
"""Headers of columns of file names, most usual first."""

_UNNAMED = re.compile(r"(unnamed: ?[0-9]+)?", re.IGNORECASE)


@dataclass
class Table:
    """A table of attributes over the images of some data.

    Attributes:
        columns: Name -> column, a row an image.
        notes: What a user has to know of how it was read, a sentence each.
        path: The file.
        is_by_file: Whether file names tell which row is of which image, rather than the order of the rows.
    """

    columns: dict[str, Tensor]
    notes: list[str]
    path: Path
    is_by_file: bool = False

    def learnable(self) -> Table:
        """Return the table without the columns that no concept can be learned from, and say so.

        Raises:
            DataError: None is left.
        """
        reasons = {name: _why_not(column) for name, column in self.columns.items()}
        kept = {name: self.columns[name] for name, reason in reasons.items() if not reason}
        told = []
        for reason in sorted(set(filter(None, reasons.values()))):
            names = [name for name, why in reasons.items() if why == reason]
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            told.append(f"{', '.join(names[:5])}{more} ({reason})")
        if not kept:
            raise DataError(
                f"The table {self.path} has no column that a concept can be learned from: "
                f"{'; '.join(told) or 'there is none besides file names'}. Needed is a value that two images share, "
                "and another one."
            )
        return Table(
            kept,
            [*self.notes, *([f"Columns left out: {'; '.join(told)}."] if told else [])],
            self.path,
            self.is_by_file,
        )


def _why_not(column: Tensor) -> str:
    if column.is_floating_point():
        known = column[torch.isfinite(column)]
        return "" if len(torch.unique(known)) > 1 else "the same everywhere" if len(known) else "no known value"
    known = column[column != -1]
    values = len(torch.unique(known))
    if values < 2:
        return "the same everywhere" if values else "no known value"
    return "" if values < len(known) else "different in each row"


def read_table(path: str | Path, *, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Read a table of attributes: `open_table` without what there is to say of it."""
    return open_table(path, names=names).columns


def open_table(
    path: str | Path,
    *,
    names: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    files: str | None = None,
    delimiter: str | None = None,
) -> Table:
    """Read a table of attributes: a header, then one row an image.

    Cells are separated by commas, semicolons, tabs, bars or blanks; CelebA's own layout, with a count above the header
    and no name over the files, is read too. Columns of decimal numbers (with a point or an exponent somewhere) are
    continuous; whole numbers and texts are categories. Empty cells and words such as NA, None or ? are missing; so is
    -1, unless a column holds only -1 and 1 (no and yes), or other values below -1.

    Args:
        path: The file.
        names: File names of the data set's images, in their order; the table's rows are put into it. Images without a
            row have missing values. Without, rows are in the images' order.
        columns: The wanted columns; all by default.
        files: The column of file names; found by its header and its cells by default.
        delimiter: What separates cells; found by default.

    Raises:
        DataError: The file cannot be read, is ragged, lacks every image, or contradicts itself.
        UnknownNameError: A wanted column is not there.
    """
    cells = read_cells(Path(path), delimiter)
    for wanted in (*(columns or ()), *((files,) if files else ())):
        if wanted not in cells.header:
            raise UnknownNameError(f"The table {path} has no column {quoted(wanted)}. {suggest(wanted, cells.header)}")
    k = _file_column(cells, names) if files is None else cells.header.index(files)
    unnamed = [i for i, name in enumerate(cells.header) if _UNNAMED.fullmatch(name)]
    if columns is None:
        wanted_columns = [i for i in range(len(cells.header)) if i != k and i not in unnamed]
    else:
        wanted_columns = [cells.header.index(name) for name in columns]
    order: list[int | None] = list(range(len(cells.rows)))
    if k is not None:
        order = _order(cells, k, wanted_columns, names)
    found = {}
    readings: list[str] = []
    for i in wanted_columns:
        texts = ["" if r is None else cells.rows[r][i] for r in order]
        found[cells.header[i]], said = text_column(texts, cells.header[i], decimal_comma=cells.delimiter != ",")
        readings += said
    cells.notes += _together(readings)
    cells.notes += missing_notes(found, {cells.header[i]: cells.column(i) for i in wanted_columns})
    return Table(found, cells.notes, cells.path, k is not None and names is not None)


def _together(notes: Sequence[str]) -> list[str]:
    """Return sentences "In 'x', ..." with those that say the same of several columns as one."""
    columns: dict[str, list[str]] = {}
    for note in notes:
        start, _, rest = note.rpartition("', ")
        columns.setdefault(rest, []).append(f"{start.removeprefix('In ')}'")
    more = {rest: f" and {len(names) - 3} columns more" if len(names) > 3 else "" for rest, names in columns.items()}
    return [f"In {', '.join(names[:3])}{more[rest]}, {rest}" for rest, names in columns.items()]


def missing_notes(columns: dict[str, Tensor], texts: dict[str, list[str]] | None = None) -> list[str]:
    """Return a sentence on the columns with missing values, with the words that stood for them; none if none has."""
    told = []
    for name, column in columns.items():
        count = unknown_count(column)
        if count:
            words = [
                (cell or "empty") for cell, _ in Counter((texts or {}).get(name, ())).most_common() if is_missing(cell)
            ]
            which = f" ({', '.join(words[:3])})" if words else ""
            told.append(f"{name!r} {count:,}{which}")
    total = len(next(iter(columns.values()))) if columns else 0
    more = f", and {len(told) - 6} columns more" if len(told) > 6 else ""
    return [f"Of {total:,} values, these are missing (-1 counts as missing): {', '.join(told[:6])}{more}."] * bool(told)


def _file_column(cells: Cells, names: Sequence[str] | None) -> int | None:
    """Return the column of file names, by its cells where the images' names are known, else by header or cells."""
    titles = [re.sub(r"[ .-]+", "_", name.lower()) for name in cells.header]
    by_title = sorted(
        (k for k, t in enumerate(titles) if t in FILE_COLUMNS), key=lambda k: FILE_COLUMNS.index(titles[k])
    )
    by_cells = [k for k in range(len(titles)) if any(IMAGE_FILE.fullmatch(row[k]) for row in cells.rows[:100])]
    if names is not None:
        known = {part for name in names for part in (_base(name), _stem(name))}
        scores = {k: sum(_base(c) in known for c in set(cells.column(k))) for k in range(len(titles))}
        likely = [
            k for k in scores if scores[k] and (k in by_title or k in by_cells or scores[k] > len(cells.rows) / 2)
        ]
        if likely:
            return max(likely, key=lambda k: (scores[k], -k))
    if by_cells:
        return next((k for k in by_title if k in by_cells), by_cells[0])
    # A "name" may be a person's: only above the first column does it say that the cells are files.
    return next((k for k in by_title if k == 0 or titles[k] not in ("name", "image", "file")), None)


def _base(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def _stem(path: str) -> str:
    return Path(_base(path)).stem


def _order(cells: Cells, k: int, wanted: Sequence[int], names: Sequence[str] | None) -> list[int | None]:
    """Return the row of each image, None where it has none; without names, all rows in their order."""
    _check_repeated(cells, k, wanted)
    if names is None:
        return list(range(len(cells.rows)))
    subject = f"The table {cells.path}"
    found = match_rows(cells.column(k), names, subject=subject)
    missing = [name for name, rows in zip(names, found, strict=True) if not rows]
    if len(missing) == len(names):
        first = next((c for c in cells.column(k) if c), "")
        raise DataError(
            f"The table {cells.path} has no row for {len(missing):,} of {len(names):,} images, first {missing[0]}; "
            f"its file names, in the column {cells.header[k]!r}, are like {first!r}."
        )
    used = {row for rows in found for row in rows}
    blank = sum(not c for c in cells.column(k))
    counts = {
        f"images without a row, of {len(names):,}, whose values are missing": len(missing),
        "rows of no image of these data": len(cells.rows) - len(used) - blank,
        "rows without a file name": blank,
        "rows that repeat another": sum(max(0, len(rows) - 1) for rows in found),
    }
    told = "; ".join(f"{text}: {count:,}" for text, count in counts.items() if count > 0)
    if told:
        cells.notes.append(f"The table {cells.path.name}: {told}.")
    return [rows[0] if rows else None for rows in found]


def _check_repeated(cells: Cells, k: int, wanted: Sequence[int]) -> None:
    """Check that rows with one file name say the same.

    Raises:
        DataError: Two contradict each other.
    """
    first: dict[str, int] = {}
    for row, values in enumerate(cells.rows):
        name = values[k].replace("\\", "/").removeprefix("./")
        if not name:
            continue
        before = first.setdefault(name, row)
        for i in wanted if before != row else ():
            if i != k and _differ(values[i], cells.rows[before][i]):
                raise DataError(
                    f"The table {cells.path} contradicts itself about {name}: {cells.header[i]!r} is "
                    f"{cells.rows[before][i]!r} in line {cells.lines[before]} and {values[i]!r} in line "
                    f"{cells.lines[row]}. Keep one of the rows, or choose other columns."
                )


def _differ(a: str, b: str) -> bool:
    return a != b and not (is_missing(a) and is_missing(b))
