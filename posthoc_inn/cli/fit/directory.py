"""A run's directory: what is in it, when it may be begun, gone on with or replaced. Imports nothing heavy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posthoc_inn import __version__
from posthoc_inn.errors import ConfigError, DataError
from posthoc_inn.files import replace_file, writing

FORMAT = 1
FIT = "fit.json"
LOCK = ".lock"
"""Held while a fit writes there (`posthoc_inn.fit.lock`); no part of a run."""
MEMBERS = ("bundle", "cache", "checkpoints", "metrics.json", "report.html", "samples.png", FIT)
"""All that a run writes, and all that --overwrite removes."""


@dataclass(frozen=True)
class RunDirectory:
    """The directory of one run.

    Attributes:
        path: Where it is.

    >>> RunDirectory(Path("runs/a")).bundle.as_posix()
    'runs/a/bundle'
    """

    path: Path

    @property
    def bundle(self) -> Path:
        """The fitted parts."""
        return self.path / "bundle"

    @property
    def metrics(self) -> Path:
        """All figures, as JSON."""
        return self.path / "metrics.json"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    @property
    def samples(self) -> Path:
        """The picture grid."""
        return self.path / "samples.png"

    @property
    def classifier_checkpoint(self) -> Path:
        """Where the user's model of an example is while it is trained."""
        return self.path / "checkpoints" / "classifier.safetensors"

    def record(self) -> dict[str, Any] | None:
        """Return what `fit.json` holds, or None when there is none.

        Raises:
            DataError: The file is damaged.
        """
        path = self.path / FIT
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(record, dict) or not isinstance(record.get("options"), dict):
                raise ValueError("it holds no options")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} cannot be read ({error}); the run cannot be resumed. Start it anew with --overwrite."
            ) from error
        if record.get("format") != FORMAT:
            raise DataError(
                f"{path} has format {record.get('format')!r}, this version writes {FORMAT}. Start the run anew with "
                "--overwrite."
            )
        return record

    def begin(self, options: Mapping[str, Any], *, precision: str | None = None, is_finished: bool = False) -> None:
        """Write `fit.json`, replacing it at once.

        Args:
            options: What the run is made of.
            precision: What "auto" came to, so that a resumed run does not measure again.
            is_finished: Whether all is done.

        Raises:
            DataError: The directory cannot be written.
        """
        text = json.dumps(
            {
                "format": FORMAT,
                "version": __version__,
                "finished": is_finished,
                "precision": precision,
                "options": dict(options),
            },
            indent=2,
        )
        self.write(FIT, text + "\n")

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file of the run, replacing it at once, and return its path.

        Raises:
            DataError: It cannot be written.
        """
        target = self.path / name
        with writing(target, "Choose another --out, or make room and go on with --resume."):
            self.path.mkdir(parents=True, exist_ok=True)
            replace_file(target, content)
        return target

    def is_in_use(self) -> bool:
        """Whether anything is in it."""
        if not self.path.exists():
            return False
        if not self.path.is_dir():
            return True
        return any(not child.name.endswith(".partial") and child.name != LOCK for child in self.path.iterdir())

    def check_new(self, *, overwrite: bool) -> None:
        """Make sure that a run can begin here; nothing is removed yet.

        Raises:
            DataError: Something is in the way; the message says what and what to do.
        """
        if not self.is_in_use():
            return
        if not self.path.is_dir():
            raise DataError(f"{self.path} is a file; --out takes a directory.")
        record = (self.path / FIT).exists()
        if not record:
            raise DataError(
                f"{self.path} is not empty, and not a run of posthoc-inn (it has no {FIT}); nothing in it is touched. "
                "Choose another --out."
            )
        if not overwrite:
            finished = (self.record() or {}).get("finished")
            where = f"--out {self.path}"
            if finished:
                raise DataError(
                    f"There is a finished run in {self.path}; its report is {self.report}. To do it again, add "
                    f"--overwrite; to keep it, choose another --out."
                )
            raise DataError(
                f"There is an unfinished run in {self.path}. To go on with it: posthoc-inn fit {where} --resume. To "
                "start anew: --overwrite."
            )

    def clear(self) -> None:
        """Remove what a run has written here, and nothing else.

        Raises:
            DataError: It cannot be removed.
        """
        try:
            for name in MEMBERS:
                member = self.path / name
                if member.is_dir() and not member.is_symlink():
                    shutil.rmtree(member)
                else:
                    member.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"{self.path} cannot be replaced: {error.strerror or error}.") from error


def resumed_options(
    record: Mapping[str, Any], given: Mapping[str, Any], explicit: Collection[str], where: Path
) -> dict[str, Any]:
    """Return the options of the run that is gone on with; what is not given on the command line is taken from it.

    Args:
        record: What `fit.json` holds.
        given: The options as parsed, defaults included.
        explicit: Names of those that stand on the command line.
        where: The run's directory, for the message.

    Raises:
        ConfigError: An option that was given differs from the run's; the message names all of them.

    >>> resumed_options({"options": {"steps": 5, "seed": 1}}, {"steps": None, "seed": 1}, {"seed"}, Path("runs/a"))
    {'steps': 5, 'seed': 1}
    """
    stored = record["options"]
    differing = [
        f"--{name.replace('_', '-')} (was {_shown(stored.get(name))}, now {_shown(given[name])})"
        for name in given
        if name in explicit and stored.get(name) != given[name]
    ]
    if differing:
        raise ConfigError(
            f"The run in {where} was begun with other options: {', '.join(differing)}. Resume it with the same ones "
            "(or "
            "with none: they are remembered), choose another --out, or start anew with --overwrite."
        )
    return {name: stored.get(name, value) for name, value in given.items()}


def _shown(value: Any) -> str:
    return "not given" if value is None else str(value)
