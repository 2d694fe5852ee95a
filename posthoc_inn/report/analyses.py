"""One self-contained HTML file about analyses: a section each, with figure, caption and figures as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posthoc_inn.files import plain, replace_file, writing
from posthoc_inn.report.pages import fill, picture_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPERS = "MSC: Making Sense of CNNs (ECCV 2020). IIN: A Disentangling Invertible Interpretation Network (CVPR 2020)."
MAX_ROWS = 60
"""Rows of figures a section shows; all of them are in the JSON file."""


@dataclass(frozen=True)
class AnalysisSection:
    """One analysis, for a reader.

    Attributes:
        title: Its heading.
        result: What `to_dict` returned.
        caption: What to conclude and what not; "" where the result has none.
        figure: Its picture, or None.
        seconds: How long it took.
        problem: Why there is no result, or "".
    """

    title: str
    result: Mapping[str, Any] = field(default_factory=dict)
    caption: str = ""
    figure: Figure | None = None
    seconds: float = 0.0
    problem: str = ""


def section_of(title: str, result: Any, seconds: float) -> AnalysisSection:
    """Return the section of a result: any object with `to_dict`, and `figure` and `caption` where it has them."""
    figure = result.figure() if callable(getattr(result, "figure", None)) else None
    return AnalysisSection(title, result.to_dict(), str(getattr(result, "caption", "") or ""), figure, seconds)


def render_analyses(heading: str, lead: Sequence[str], sections: Sequence[AnalysisSection], version: str = "") -> str:
    """Return the whole HTML document."""
    return fill(
        "analyses.html",
        title=heading,
        lead=lead,
        sections=[_shown(section) for section in sections],
        max_rows=MAX_ROWS,
        papers=PAPERS,
        version=version,
    )


def write_analyses(
    heading: str,
    lead: Sequence[str],
    sections: Sequence[AnalysisSection],
    out: Path,
    version: str = "",
    *,
    outside: Mapping[str, Any] | None = None,
) -> tuple[Path, Path]:
    """Write analysis.html and analysis.json to the directory `out`, each replaced at once.

    `outside` says which images are unlike those of the fit; it stands beside the analyses in the JSON.

    Raises:
        DataError: They cannot be written.
    """
    facts: dict[str, Any] = {
        s.title: {**s.result, "seconds": round(s.seconds, 3)} if not s.problem else {"problem": s.problem}
        for s in sections
    }
    if outside is not None:
        facts["outside"] = outside
    texts = {
        out / "analysis.html": render_analyses(heading, lead, sections, version),
        out / "analysis.json": json.dumps(plain(facts), indent=1, allow_nan=False) + "\n",
    }
    for path, text in texts.items():
        with writing(path):
            out.mkdir(parents=True, exist_ok=True)
            replace_file(path, text)
    html, figures = texts
    return html, figures


def _shown(section: AnalysisSection) -> dict[str, Any]:
    """Return what the template shows of a section."""
    return {
        "title": section.title,
        "problem": section.problem,
        "picture": None if section.figure is None else picture_of(section.figure, section.title),
        "caption": section.caption,
        "rows": list(_rows(section.result)),
    }


def _rows(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, text) for every leaf; lists of numbers stay together."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _rows(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(v, (Mapping, list)) for v in value):
        for k, inner in enumerate(value):
            own = inner.get("name", k) if isinstance(inner, Mapping) else k
            yield from _rows(inner, f"{name}.{own}")
    else:
        yield name, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        shown = ", ".join(_text(v) for v in value[:12])
        return shown + (f", ... ({len(value)})" if len(value) > 12 else "")
    return "–" if value is None else str(value)
