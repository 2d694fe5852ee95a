"""Aligns a folder of photographs: a picture a face, and a record by which it is gone on with and nothing is lost."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posthoc_inn.errors import DataError, PosthocInnWarning, listed
from posthoc_inn.files import partial_of, replace_file, writing
from posthoc_inn.images import ImageFiles, find_image_files, load_image
from posthoc_inn.names import encodable
from posthoc_inn.progress import Reporter
from posthoc_inn_facenet.faces import MARGIN, MIN_FACE, SIZE, FaceAligner, to_picture

RECORD = "alignment.jsonl"
"""In the directory of the faces: the settings, then a line a photograph."""
NO_FACE, UNREADABLE, FAILED, TAKEN = "no face", "unreadable", "the detector failed", "another file has its name"
"""Why a photograph is left out."""


@dataclass
class Alignment:
    """What became of the photographs of a folder.

    Attributes:
        out: Where the faces are.
        photographs: How many there are.
        faces: Photograph -> its face, both as paths relative to their folders.
        left_out: Reason -> the photographs left out for it.
        several: Photographs with more than one face, of which the largest was taken.
        done_before: How many had been looked at by an earlier call.
        changed: Photographs that are others than at an earlier call, and were aligned anew.
        gone: Faces in `out` whose photographs are no longer there.

    >>> Alignment(Path("faces"), 3, {"a.jpg": "a.png"}, {"no face": ["b.jpg", "c.jpg"]}).told()
    'Of 3 photographs 1 gave a face. Left out: 2 (no face: 2).'
    """

    out: Path
    photographs: int
    faces: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    several: list[str] = field(default_factory=list)
    done_before: int = 0
    changed: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    def told(self) -> str:
        """Return all of it in a line."""
        count = sum(map(len, self.left_out.values()))
        reasons = ", ".join(f"{reason}: {len(names):,}" for reason, names in sorted(self.left_out.items()))
        parts = [f"Of {self.photographs:,} photographs {len(self.faces):,} gave a face."]
        if self.several:
            parts.append(f"With several faces, the largest taken: {len(self.several):,}.")
        if count:
            parts.append(f"Left out: {count:,} ({reasons}).")
        if self.done_before:
            parts.append(f"Done before: {self.done_before:,}.")
        if self.changed:
            parts.append(f"Changed since, and aligned anew: {len(self.changed):,}.")
        if self.gone:
            parts.append(f"Of photographs that are gone, and left as they are: {len(self.gone):,}.")
        return " ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {**vars(self), "out": str(self.out), "faces": len(self.faces)}


def align_folder(
    photos: str | Path,
    out: str | Path,
    *,
    size: int = SIZE,
    margin: int = MARGIN,
    min_face: int = MIN_FACE,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Alignment:
    """Write the largest face of each photograph below a folder as a PNG under the same name below another.

    Called again it goes on where it was: what is done is kept, and a photograph that was changed since is aligned anew.

    Args:
        photos: The photographs, with their subfolders.
        out: New, empty, or what an earlier call with the same settings wrote.
        size: Side of the faces in pixels.
        margin: Pixels of it around the face.
        min_face: Side in pixels of the smallest face that is looked for.
        overwrite: Remove the faces of earlier calls first. Other files are never touched.
        reporter: Is told how far it has come.

    Raises:
        ConfigError: A setting is out of range.
        DataError: There are no photographs, `out` holds something else, or cannot be written.
    """
    photos, out = Path(photos), Path(out)
    aligner = FaceAligner(size, margin, min_face)
    files = _photographs(photos, out)
    record = _Record(out, {"size": size, "margin": margin, "min_face": min_face}, overwrite=overwrite)
    result = Alignment(out, len(files))
    reporter = reporter or Reporter()
    names = [file.relative_to(photos).as_posix() for file in files]
    targets = _targets(names, record)
    with record:
        reporter.stage("aligning", len(files))
        for number, (file, name) in enumerate(zip(files, names, strict=True)):
            _add(result, name, _align(file, name, targets[name], aligner, record, result))
            reporter.advance(number + 1)
    result.gone = sorted(n for n, row in record.rows.items() if row.get("face") and n not in targets)
    return result


def aligned(
    photos: str | Path, out: str | Path, *, size: int = SIZE, margin: int = MARGIN, min_face: int = MIN_FACE
) -> ImageFiles:
    """Return the faces of a folder of photographs as a data set: `align_folder` first, then its faces.

    Returns:
        Of each photograph with a face the largest one, float (3, size, size) in [0, 1], sorted by path.

    Raises:
        ConfigError: A setting is out of range.
        DataError: No photograph has a face, or see `align_folder`.
    """
    result = align_folder(photos, out, size=size, margin=margin, min_face=min_face)
    check_any(result, photos)
    if result.left_out:
        warnings.warn(f"{photos}: {result.told()}", PosthocInnWarning, stacklevel=2)
    data = ImageFiles(out, size)
    # Neither faces of photographs that are gone nor anything else that lies there.
    data.files = sorted(Path(out, face) for face in result.faces.values())
    return data


def check_any(result: Alignment, photos: str | Path) -> None:
    """Make sure that there is a face.

    Raises:
        DataError: No photograph has one.
    """
    if not result.faces:
        raise DataError(
            f"No face was found below {photos}. {result.told()} Are these photographs of faces, and large enough? "
            "A smaller face is looked for with --min-face (min_face=)."
        )


def _photographs(photos: Path, out: Path) -> list[Path]:
    """Return the photographs, without what an earlier call wrote among them."""
    inside = out.resolve()
    if photos.is_dir() and photos.resolve() == inside:
        raise DataError(f"The faces would be written among the photographs of {photos}: pass another directory.")
    files = [file for file in find_image_files(photos) if inside not in file.resolve().parents]
    if not files:
        raise DataError(f"There is no image in {photos}, but for those in {out}.")
    return files


def _targets(names: Iterable[str], record: _Record) -> dict[str, str]:
    """Return where the face of each photograph is written; a.jpg and a.png get two names."""
    names = list(names)
    plain = {name: Path(name).with_suffix(".png").as_posix() for name in names}
    counts = Counter(path.casefold() for path in plain.values())
    found = {n: plain[n] if counts[plain[n].casefold()] == 1 else f"{n}.png" for n in names}
    earlier = {name: row["face"] for name, row in record.rows.items() if row.get("face")}
    taken = {face.casefold(): name for name, face in earlier.items()}
    for name in names:
        # What an earlier call has written keeps its name, whatever has been added since.
        if name in earlier:
            found[name] = earlier[name]
        elif taken.get(found[name].casefold(), name) != name:
            found[name] = f"{name}.png"
    return found


def _align(
    file: Path, name: str, target: str, aligner: FaceAligner, record: _Record, result: Alignment
) -> dict[str, Any]:
    """Return the line of one photograph: an earlier one where nothing has changed, else after aligning it."""
    try:
        content = file.read_bytes()
    except OSError as error:
        # No line is kept: it may be readable at the next call.
        return {"left out": UNREADABLE, "why": error.strerror or str(error)}
    digest = hashlib.sha256(content).hexdigest()
    row = record.rows.get(name)
    is_known = row is not None and row["sha256"] == digest
    if row is not None and is_known and (not row.get("face") or (record.out / row["face"]).is_file()):
        result.done_before += 1
        return row
    if row is not None and not is_known:
        result.changed.append(name)
    earlier = row.get("face") if row is not None else None
    found = {"sha256": digest, **_cut(file, record.out / target, target, aligner, is_own=earlier == target)}
    if earlier is not None and not found.get("face"):
        # The face of what the photograph was would be taken for its own.
        with writing(record.out / earlier):
            (record.out / earlier).unlink(missing_ok=True)
    if found.get("left out") != TAKEN:
        record.add(name, found)
    return found


def _cut(file: Path, path: Path, target: str, aligner: FaceAligner, *, is_own: bool) -> dict[str, Any]:
    """Write the face of a photograph, and return what is told of it; a stranger's file is left as it is."""
    try:
        picture = to_picture(load_image(file))
    except DataError as error:
        return {"left out": UNREADABLE, "why": str(error)}
    try:
        face, count = aligner.cut(picture)
    except DataError as error:
        return {"left out": FAILED, "why": str(error)}
    if face is None:
        return {"left out": NO_FACE}
    png = io.BytesIO()
    face.save(png, format="PNG")
    with writing(path):
        if path.exists() and not is_own:
            # After a kill -9 between a face and its line the same bytes lie there.
            if path.is_file() and path.read_bytes() == png.getvalue():
                return {"face": target, "faces": count}
            return {"left out": TAKEN}
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, png.getvalue())
    return {"face": target, "faces": count}


def _add(result: Alignment, name: str, row: dict[str, Any]) -> None:
    if row.get("face"):
        result.faces[name] = row["face"]
        if row.get("faces", 1) > 1:
            result.several.append(name)
    else:
        result.left_out.setdefault(str(row["left out"]), []).append(name)


class _Record:
    """The lines of a directory of faces: photograph -> what became of it; each is on the disk before the next begins.

    Args:
        out: The directory.
        settings: Those of this call; others are refused.
        overwrite: Remove the faces that the record names, and the record, first.
    """

    def __init__(self, out: Path, settings: dict[str, int], *, overwrite: bool) -> None:
        self.out, self.settings = out, settings
        self.path = out / RECORD
        self.rows: dict[str, dict[str, Any]] = {}
        if out.exists() and not out.is_dir():
            raise DataError(f"{out} is a file; the faces are written to a directory.")
        if self.path.is_file():
            head, self.rows = self._read()
            if overwrite:
                self._remove()
            elif head != settings:
                raise DataError(
                    f"The faces in {out} were made with {_told(head)}, not with {_told(settings)}. Pass the same, "
                    "another directory, or --overwrite (overwrite=True)."
                )
        elif out.is_dir() and any(not p.name.startswith(".") for p in out.iterdir()):
            raise DataError(f"{out} holds other files, and no {RECORD}: pass a new or an empty directory.")

    def __enter__(self) -> _Record:
        with writing(self.path):
            self.out.mkdir(parents=True, exist_ok=True)
            # Written whole, so that a line that was cut short is gone.
            lines = [json.dumps(self.settings), *(self._line(n, row) for n, row in self.rows.items())]
            replace_file(self.path, "\n".join(lines) + "\n")
            self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Keep a line."""
        self.rows[name] = row
        with writing(self.path):
            self._file.write(self._line(name, row) + "\n")
            self._file.flush()

    @staticmethod
    def _line(name: str, row: dict[str, Any]) -> str:
        return json.dumps({"photograph": name, **row})

    def _read(self) -> tuple[Any, dict[str, dict[str, Any]]]:
        """Return the settings and the lines; one that a kill cut short ends the file, and is dropped."""
        try:
            lines = self.path.read_text("utf-8").split("\n")[:-1]
            head, *rows = map(json.loads, lines)
            found = {}
            for row in rows:
                name = row.pop("photograph")
                if not isinstance(row["sha256"], str) or not _is_inside(row.get("face")):
                    raise ValueError(f"a line for {name!r} that no alignment wrote")
                found[str(name)] = row
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.path} cannot be read ({' '.join(str(error).split())[:120]}): remove it with the faces beside "
                "it, or pass another directory."
            ) from error
        return head, found

    def _remove(self) -> None:
        with writing(self.out):
            for row in self.rows.values():
                if row.get("face"):
                    (self.out / row["face"]).unlink(missing_ok=True)
                    partial_of(self.out / row["face"]).unlink(missing_ok=True)
            self.path.unlink()
        self.rows = {}


def _is_inside(face: object) -> bool:
    """Say whether a path of the record stays in the directory: --overwrite removes what it names."""
    if face is None:
        return True
    return isinstance(face, str) and not os.path.isabs(face) and ".." not in Path(face).parts and bool(face)


def _told(settings: object) -> str:
    if not isinstance(settings, dict):
        return "other settings"
    return encodable(listed([f"{key} {value}" for key, value in settings.items()]))
