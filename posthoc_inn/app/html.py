"""HTML of an answer, of findings and of messages. All text is escaped; pictures are data inside the page."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from markupsafe import Markup, escape
from PIL import Image
from torch import Tensor

from posthoc_inn.app.answers import Answer, Card, Row
from posthoc_inn.app.fitted import Shown
from posthoc_inn.app.words import Words
from posthoc_inn.drawing import picture as as_array
from posthoc_inn.names import visible
from posthoc_inn.report.findings.judging import Finding

SMALL = 72
"""Pixels of a side up to which a picture's own pixels are shown as squares."""
LONGEST = 160
"""Letters of a name that are shown."""
SIGNS = {"good": "✓", "fair": "~", "poor": "✗", "info": "·"}
MARKS = {"same": ("✓", "the same prediction"), "other": ("✗", "another prediction"), "": ("", "")}


def text(value: str) -> Markup:
    """Return a text as HTML: escaped, cut, and with what would steer a terminal or a page written out."""
    shown = visible(value[: LONGEST + 1])
    return escape(shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…")


def source_of(picture: Tensor) -> str:
    """Return a canonical image (C, H, W) as a data URI."""
    buffer = io.BytesIO()
    levels = np.rint(as_array(picture) * 255).astype(np.uint8)
    Image.fromarray(levels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def of_answer(answer: Answer, *, is_wide: bool = False) -> str:
    """Return an answer's rows and sentences.

    Args:
        answer: What a part returned.
        is_wide: Whether its pictures are large.
    """
    parts = [
        *(Markup('<p class="inn-doubt">{}</p>').format(visible(doubt)) for doubt in answer.doubts),
        *map(_row, answer.rows),
        *(Markup('<p class="inn-told">{}</p>').format(visible(sentence)) for sentence in answer.told),
    ]
    return Markup('<div class="{}">{}</div>').format("inn-wide" if is_wide else "inn-answer", Markup("").join(parts))


def _row(row: Row) -> Markup:
    head = Markup('<p class="inn-head">{}</p>').format(text(row.heading)) if row.heading else Markup("")
    cards = Markup("").join(map(_card, row.cards))
    return head + Markup('<div class="inn-row">{}</div>').format(cards)


def _card(card: Card) -> Markup:
    sign, meaning = MARKS[card.mark]
    says = " ".join(part for part in (sign, card.says) if part)
    description = ": ".join(part for part in (card.title, card.says) if part)
    description += f" ({meaning})" if meaning else ""
    return Markup(
        '<figure class="inn-card {mark}"><img class="{size}" src="{source}" alt="{description}" title="{meaning}">'
        '<figcaption><div class="title">{title}</div><div class="says">{says}</div>{bars}</figcaption></figure>'
    ).format(
        mark=card.mark,
        size="small" if min(card.picture.shape[-2:]) <= SMALL else "large",
        source=source_of(card.picture),
        description=text(description),
        meaning=meaning,
        title=text(card.title),
        says=text(says),
        bars=Markup("").join(
            Markup('<div class="inn-bar"><span>{}</span><i style="width:{:.0f}%"></i><b>{:.0f} %</b></div>').format(
                text(bar.name), max(1.0, 100 * bar.share), 100 * bar.share
            )
            for bar in card.bars
        ),
    )


def of_words(words: Words) -> str:
    """Return what to conclude and what not."""
    return Markup('<div class="inn-words"><p>{}</p><p class="no">{}</p></div>').format(
        _begun(words.conclude, "What to conclude:"), _begun(words.limits, "What not to conclude:")
    )


def _begun(sentence: str, beginning: str) -> Markup:
    rest = sentence.removeprefix(beginning)
    # What stands between backticks is typed.
    parts = (Markup("<code>{}</code>" if k % 2 else "{}").format(part) for k, part in enumerate(rest.split("`")))
    return Markup("<b>{}</b>{}").format(beginning, Markup("").join(parts))


def of_problem(message: str) -> str:
    """Return what went wrong, for all readers."""
    return Markup('<p class="inn-problem" role="alert">{}</p>').format(visible(message))


def of_advice(message: str) -> str:
    """Return what to do."""
    return Markup('<p class="inn-told">{}</p>').format(visible(message))


def of_choice(title: str, shown: Shown) -> str:
    """Return which picture is chosen, with what it is for and its name."""
    return Markup('<div class="inn-choice"><img src="{}" alt=""><div><b>{}</b><br>{}</div></div>').format(
        source_of(shown.picture), text(title), text(shown.name)
    )


def of_findings(found: Sequence[Finding]) -> str:
    """Return the figures of a fit as tables, a group each."""
    if not found:
        return of_problem(
            "This bundle holds no figures: its fit was not measured. Fit it again, without evaluate=False."
        )
    tables = []
    for group, members in itertools.groupby(found, lambda finding: finding.group):
        tables.append(
            Markup('<table class="inn-table"><caption>{}</caption><tbody>{}</tbody></table>').format(
                text(group), Markup("").join(map(_finding, members))
            )
        )
    return Markup("<p class='inn-told'>{}</p>").format(_legend(found)) + Markup("").join(tables)


def _finding(finding: Finding) -> Markup:
    advice = f" {finding.advice}" if finding.status == "poor" and finding.advice else ""
    return Markup('<tr><th scope="row">{}</th><td class="value {}">{} {}</td><td>{}</td></tr>').format(
        visible(finding.label),
        finding.status,
        SIGNS[finding.status],
        visible(finding.value),
        visible(finding.meaning + advice),
    )


def _legend(found: Iterable[Finding]) -> str:
    there = {finding.status for finding in found}
    told = {"good": "good", "fair": "fair", "poor": "poor", "info": "neither good nor bad"}
    return ", ".join(f"{SIGNS[status]} {word}" for status, word in told.items() if status in there)
