"""The exception and warning tree: each error also is the built-in a caller would expect."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from posthoc_inn.names import visible

LONGEST_MESSAGE = 1500
"""Letters of a message, whatever was put into it."""


def cut(text: str) -> str:
    """Return a message of at most `LONGEST_MESSAGE` characters: what is too much is left out of its middle.

    >>> len(cut("a" * 5000)), cut("short")
    (1500, 'short')
    """
    if len(text) <= LONGEST_MESSAGE:
        return text
    # The end says what to do.
    return f"{text[: LONGEST_MESSAGE - 505]} ... {text[-500:]}"


class PosthocInnError(Exception):
    """Root of every error raised on purpose; the command line turns it into one line and exit code 1."""

    def __str__(self) -> str:
        return cut(super().__str__())


class LayerNotFoundError(PosthocInnError, LookupError):
    """No module of the model has the given dotted name, or the layer is never reached."""


class NotFittedError(PosthocInnError, ValueError, AttributeError):
    """Something learned was asked for before `fit` (or before a flow was initialised)."""


class ShapeError(PosthocInnError, ValueError):
    """A tensor's shape or dtype is not what the callee accepts."""


class UnknownNameError(PosthocInnError, LookupError):
    """A name is not registered; the message lists the nearest ones."""


class DuplicateNameError(PosthocInnError, ValueError):
    """Two distributions register the same name."""


class PluginError(PosthocInnError, RuntimeError):
    """A plugin could not be loaded, or broke while it was used."""


class ModelTouchedError(PosthocInnError, RuntimeError):
    """The explained model was changed; the message says what and how."""


class ModelError(PosthocInnError, RuntimeError):
    """The explained model raises an error of its own on what it was given; that error is the cause."""


class BundleError(PosthocInnError, ValueError):
    """A saved bundle is not what it should be: format, version, names, shapes or values."""


class DataError(PosthocInnError, ValueError):
    """Images or a data set cannot be used as given."""


class ConfigError(PosthocInnError, ValueError):
    """Arguments or a configuration are wrong; every problem is listed at once."""


class TrainingError(PosthocInnError, RuntimeError):
    """Training cannot go on: diverged, too many non-finite steps, nothing to resume."""


class PosthocInnWarning(UserWarning):
    """Root of every warning issued on purpose."""


class OutsideWarning(PosthocInnWarning):
    """The layer's representation of some images is unlike that of the images that t was fitted to."""


LONGEST = 200
"""Letters of a name that are compared with others."""


def shown(text: object, limit: int = 400) -> str:
    r"""Return a stranger's text on one line, cut to `limit` characters, with control characters written out.

    What users and files say is quoted in messages: it must not fill or steer a terminal.

    >>> shown("a\x1b[2J" + chr(10) + "b"), shown("a" * 50, 10)
    ('a\\x1b[2J b', 'aaaaaaa...')
    """
    line = visible(" ".join(str(text).split())[: limit + 1])
    return line if len(line) <= limit else line[: limit - 3] + "..."


def quoted(name: object) -> str:
    """Return a name that was received, in quotes and cut.

    >>> quoted("layer3"), len(quoted("a" * 1000))
    ("'layer3'", 80)
    """
    return shown(repr(name), 80)


def listed(items: Sequence[object], limit: int = 8, width: int = 80) -> str:
    """Return the first items of a list, each cut, and how many more there are.

    >>> listed(["a", "b", "c"], 2)
    'a, b, and 1 more'
    """
    more = f", and {len(items) - limit:,} more" if len(items) > limit else ""
    return ", ".join(shown(item, width) for item in items[:limit]) + more


def suggest(name: str, known: Iterable[str], *, limit: int = 8) -> str:
    """Return the sentence that names what is accepted, nearest first.

    Args:
        name: What was received.
        known: Every accepted name.
        limit: How many names are listed at the most.

    Returns:
        ``"Did you mean 'layer3'? Known: ..."``, or ``"None are known."``.
    """
    names, name = list(known), name[:LONGEST]
    if not names:
        return "None are known."
    lowered = {n.lower(): n for n in reversed(names)}
    near = [lowered[n] for n in difflib.get_close_matches(name.lower(), list(lowered), n=3, cutoff=0.6)]
    if not near:
        near = [n for n in names if name.lower() in n.lower()][:3]
    hint = "Did you mean " + " or ".join(quoted(n) for n in near) + "? " if near else ""
    return f"{hint}Known: {listed(near + [n for n in names if n not in near], limit)}."


def is_count(value: object, low: int) -> bool:
    """Whether `value` is a whole number of at least `low`; True and False are none.

    >>> is_count(3, 1), is_count(True, 1), is_count(2.0, 1)
    (True, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


class Problems:
    """Collects argument problems, so that all of them are raised together.

    >>> problems = Problems("FlowConfig")
    >>> problems.check(0 >= 1, "blocks must be at least 1, got 0")
    >>> problems.check(-1 > 0, "width must be positive, got -1")
    >>> problems.raise_if_any()
    Traceback (most recent call last):
    ...
    posthoc_inn.errors.ConfigError: FlowConfig: blocks must be at least 1, got 0; width must be positive, got -1
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.found: list[str] = []

    def check(self, is_good: bool, problem: str) -> None:
        """Remember `problem` unless `is_good`."""
        if not is_good:
            self.found.append(problem)

    def raise_if_any(self, error: type[PosthocInnError] = ConfigError) -> None:
        """Raise `error` listing every problem found; do nothing when there is none."""
        if self.found:
            raise error(f"{self.subject}: {'; '.join(self.found)}")
