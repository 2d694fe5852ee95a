"""Which row of a table is of which image: file names, relative paths or base names, never a guess."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from posthoc_inn.errors import DataError

Parts = tuple[str, ...]


def match_rows(cells: Sequence[str], names: Sequence[str], *, subject: str) -> list[list[int]]:
    """Return the rows that name each image.

    A row and an image belong together where the one's path ends with the other's. Folders that all rows share, or all
    images, may differ; endings (.jpg) may differ or be left out where nothing fits with them.

    Args:
        cells: What the table holds as file names, one a row.
        names: File names of the images.
        subject: The table and its column, for messages.

    Returns:
        For each image, its rows: none, one, or several that bear the same name.

    Raises:
        DataError: A row fits several images, or an image several rows with different names.

    >>> match_rows(["b.png", "a.png"], ["x/a.png", "x/b.png", "x/c.png"], subject="The table")
    [[1], [0], []]
    """
    for has_ending in (True, False):
        rows = [_parts(cell, has_ending) for cell in cells]
        images = [_parts(name, has_ending) for name in names]
        for by_row, by_image in ((rows, images), (_short(rows), images)):
            found = _ending_with(by_row, by_image)
            if any(found):
                # Data that tell base names only, and a table with a folder before some of them.
                longer = _turned(_ending_with(images, rows), len(names))
                return _unique([a or b for a, b in zip(found, longer, strict=True)], cells, names, subject)
        found = _turned(_ending_with(_short(images), rows), len(names))
        if any(found):
            return _unique(found, cells, names, subject)
    return [[] for _ in names]


def _parts(path: str, has_ending: bool) -> Parts:
    parts = [p for p in path.strip().replace("\\", "/").split("/") if p not in ("", ".")]
    if parts and not has_ending:
        stem, dot, ending = parts[-1].rpartition(".")
        if dot and stem and 1 < len(ending) < 6:
            parts[-1] = stem
    return tuple(parts)


def _short(paths: Sequence[Parts]) -> list[Parts]:
    """Return the paths without the folders that all of them are in."""
    folders = {p[:-1] for p in paths if p}
    if not folders:
        return list(paths)
    first, last = min(folders), max(folders)
    shared = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return [p[shared:] for p in paths]


def _ending_with(short: Sequence[Parts], long: Sequence[Parts]) -> list[list[int]]:
    """Return, for each long path, the positions of the short ones that it ends with."""
    places: dict[Parts, list[int]] = defaultdict(list)
    for k, parts in enumerate(short):
        if parts:
            places[parts].append(k)
    lengths = sorted({len(p) for p in places})
    return [[k for n in lengths if n <= len(p) for k in places.get(p[len(p) - n :], ())] for p in long]


def _turned(images_of: list[list[int]], count: int) -> list[list[int]]:
    """Return the rows of each of `count` images, from the images of each row."""
    found: list[list[int]] = [[] for _ in range(count)]
    for row, images in enumerate(images_of):
        for image in images:
            found[image].append(row)
    return found


def _unique(found: list[list[int]], cells: Sequence[str], names: Sequence[str], subject: str) -> list[list[int]]:
    image_of: dict[int, int] = {}
    for image, rows in enumerate(found):
        told = sorted({cells[row].strip() for row in rows}) if len(rows) > 1 else []
        if len({_parts(cell, True) for cell in told}) > 1:
            raise DataError(
                f"{subject} names the image {names[image]} more than once: {', '.join(told[:3])}. Give paths relative "
                "to the folder of images, so that each is named once."
            )
        for row in rows:
            other = names[image_of.setdefault(row, image)]
            if other != names[image]:
                raise DataError(
                    f"{subject} says {cells[row].strip()}, and several images are called so: {other} and "
                    f"{names[image]}. Give paths relative to the folder of images."
                )
    return found
