"""The top of the page: the picture, another one, and the layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from posthoc_inn.app import html
from posthoc_inn.app.fitted import Opened, Shown
from posthoc_inn.app.views.frame import ONE_AT_A_TIME, answering
from posthoc_inn.drawing import picture as as_array

THUMB = 96
"""Pixels of the shorter side of a picture to choose, at the most three times as many."""
FILES = [".png", ".jpg", ".jpeg", ".webp"]


def thumbnail(shown: Shown) -> Image.Image:
    """Return a picture at the size of a thumbnail, its own pixels as squares where they are few."""
    image = Image.fromarray(np.rint(as_array(shown.picture) * 255).astype(np.uint8))
    scale = THUMB / min(image.size)
    size = [max(1, min(3 * THUMB, round(side * scale))) for side in image.size]
    return image.resize((size[0], size[1]), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def chooser(gr: Any, opened: Opened, title: str, start: int, key: str) -> Any:
    """Show pictures to choose from and a button to send one, and return the state that holds the chosen one.

    Args:
        gr: The module gradio.
        opened: Its examples are shown.
        title: What the picture is for.
        start: Number of the example that is chosen at first.
        key: Of its parts, for tests and styles.
    """
    examples = opened.examples
    advice = "Send a picture of your own." if not examples else "Choose a picture."
    first = examples[start] if start < len(examples) else None
    state = gr.State(first)
    with gr.Column(elem_id=f"{key}-chooser", elem_classes=["inn-chooser"]):
        with gr.Row(elem_classes=["inn-chosen"]):
            told = gr.HTML(
                html.of_advice(f"{title}: none yet. {advice}") if first is None else html.of_choice(title, first),
                min_width=150,
                elem_id=f"{key}-chosen",
            )
            upload = gr.UploadButton(
                "Send your own", file_types=FILES, size="sm", min_width=120, scale=0, elem_id=f"{key}-upload"
            )
        if examples:
            gallery = gr.Gallery(
                [thumbnail(one) for one in examples],
                label=title,
                show_label=False,
                format="png",
                columns=len(examples),
                rows=1,
                object_fit="contain",
                allow_preview=False,
                interactive=False,
                buttons=[],
                elem_id=f"{key}-gallery",
                elem_classes=["inn-gallery"],
            )

            def choose(event: Any) -> tuple[str, Shown]:
                one = examples[min(max(int(event.index), 0), len(examples) - 1)]
                return html.of_choice(title, one), one

            choose.__annotations__ = {"event": gr.SelectData}
            gallery.select(choose, None, [told, state], show_progress="hidden", api_visibility="private")

    def send(path: str | None) -> tuple[str, Shown]:
        one = Shown.of_file(path or "")
        return html.of_choice(title, one), one

    upload.upload(
        answering(send, 2), upload, [told, state], show_progress_on=[told], api_visibility="private", **ONE_AT_A_TIME
    )
    return state


def layer_slider(gr: Any, names: Sequence[str]) -> Any:
    """Show a slider over the layers, hidden where there is one, and return it."""
    return gr.Slider(
        1,
        max(2, len(names)),
        1,
        step=1,
        label="Layer",
        info=" · ".join(f"{k}: {name}" for k, name in enumerate(names, 1)),
        visible=len(names) > 1,
        elem_id="layer",
    )
