"""What all views share: gradio, what is looked at, and how a function of a part is called."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from posthoc_inn.ambient import in_plain_torch
from posthoc_inn.app import html
from posthoc_inn.app.fitted import Opened
from posthoc_inn.app.guide import section
from posthoc_inn.app.words import Words
from posthoc_inn.errors import PosthocInnError, shown

ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1}
"""Two cores compute one answer sooner than two at once; the others wait in the queue."""
CHOOSE = "Choose a picture above, or send one of your own."
CHOOSE_OTHER = "Choose another picture too: under the first one's, above."


@dataclass(frozen=True, eq=False)
class Frame:
    """What all parts look at.

    Attributes:
        gr: The module gradio.
        opened: Layers and pictures.
        picture: State: the picture that is looked at (`Shown`), or None.
        other: State: the other one, or None.
        layer: Slider: the number of the layer, from 1.
        active: State: name of the part that is open. Only this one computes.
    """

    gr: Any
    opened: Opened
    picture: Any
    other: Any
    layer: Any
    active: Any

    @property
    def inputs(self) -> list[Any]:
        """What each function of a part gets first: picture, other, number of the layer."""
        return [self.picture, self.other, self.layer]

    def listen(
        self,
        words: Words,
        function: Callable[..., Any],
        controls: Sequence[Any],
        outputs: Sequence[Any],
        *,
        events: Sequence[Any] | None = None,
        is_moving: bool = False,
    ) -> None:
        """Call a part's function whenever what it shows has changed and the part is open.

        Args:
            words: The part.
            function: Of picture, other, layer's number and the controls' values; returns the outputs' values, the
                first of which is HTML, where problems are told.
            controls: Components whose values it gets.
            outputs: What it fills.
            events: What it is called at; by default at every change of picture, layer, part or control.
            is_moving: Whether it is called so often that a sign of computing would flicker.
        """
        gr, guarded = self.gr, answering(function, len(outputs))

        def if_open(active: str, *values: Any) -> Any:
            return guarded(*values) if active == words.name else gr.skip()

        every = [self.picture.change, self.other.change, self.layer.change, self.active.change]
        gr.on(
            every + [_settled(control) for control in controls] if events is None else list(events),
            if_open,
            [self.active, *self.inputs, *controls],
            list(outputs),
            trigger_mode="always_last",
            show_progress="hidden" if is_moving else "minimal",
            show_progress_on=None if is_moving else [outputs[0]],
            api_visibility="private",
            **ONE_AT_A_TIME,
        )

    def explain(self, words: Words) -> None:
        """Show what to conclude and what not, and the section of the guide that explains it."""
        self.gr.HTML(html.of_words(words))
        with self.gr.Accordion(f"Guide: {words.section}", open=False, elem_classes=["inn-guide"]):
            self.gr.Markdown(section(words.section))


def _settled(control: Any) -> Any:
    """Return the event of a control at which its new value is known."""
    return control.change


def answering(function: Callable[..., Any], outputs: int) -> Callable[..., Any]:
    """Let a part's function answer with a message in its first output where it cannot answer otherwise.

    Args:
        function: Returns a value, or a tuple of as many values as there are outputs.
        outputs: How many.
    """

    @functools.wraps(function)
    @in_plain_torch
    def run(*values: Any) -> Any:
        try:
            return function(*values)
        except PosthocInnError as error:
            message = str(error)
        except Exception as error:
            if os.environ.get("POSTHOC_INN_DEBUG", "") not in ("", "0"):
                traceback.print_exc(file=sys.stderr)
            message = (
                f"{type(error).__name__}: {shown(error)} (this is a defect of posthoc-inn; start it with "
                "POSTHOC_INN_DEBUG=1 for the traceback, and report it)"
            )
        first = html.of_problem(message)
        return first if outputs == 1 else (first, *unchanged(outputs - 1))

    return run


def unchanged(count: int) -> list[dict[str, str]]:
    """Return for so many outputs that they stay as they are, as gradio reads it."""
    return [{"__type__": "update"} for _ in range(count)]
