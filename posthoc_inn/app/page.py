"""The whole page: what is looked at on top, a tab for each part below."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from posthoc_inn.analysis.optional import require
from posthoc_inn.app.fitted import Opened
from posthoc_inn.app.views.chooser import chooser, layer_slider
from posthoc_inn.app.views.concepts import concepts_view
from posthoc_inn.app.views.frame import Frame
from posthoc_inn.app.views.pictures import attack_view, compare_view, look_view, numbers_view
from posthoc_inn.app.views.video import video_view
from posthoc_inn.app.words import ATTACK, COMPARE, CONCEPTS, LOOK, NUMBERS, VIDEO

WAITING = 64
"""Requests that wait at the most; what comes then is told to come again."""
KEPT = 3600
"""Seconds after which files that the page served are removed."""
VIEWS = (
    (LOOK, look_view),
    (CONCEPTS, concepts_view),
    (ATTACK, attack_view),
    (COMPARE, compare_view),
    (VIDEO, video_view),
    (NUMBERS, numbers_view),
)


def gradio() -> Any:
    """Return the library, which is told to send nothing anywhere before it is imported.

    Raises:
        PluginError: It is not installed; the message names the extra.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if "GRADIO_TEMP_DIR" not in os.environ:
        # Its own folder of temporary files is one for all users of a machine, and stays.
        folder = os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="posthoc-inn-app-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return require("gradio", "app", "The page")


def build(opened: Opened) -> Any:
    """Return the page as `gradio.Blocks`, with a queue that is not longer than `WAITING`.

    Args:
        opened: Layers and pictures.

    Raises:
        PluginError: gradio is not installed.
    """
    gr = gradio()
    names = [layer.name for layer in opened.layers]
    with gr.Blocks(title="posthoc_inn", analytics_enabled=False, delete_cache=(KEPT // 4, KEPT)) as page:
        gr.Markdown(f"## What {_subject(opened)} keeps of a picture, and what it ignores")
        with gr.Row():
            with gr.Column(min_width=280):
                picture = chooser(gr, opened, "The picture", 0, "picture")
            with gr.Column(min_width=280):
                other = chooser(gr, opened, "Another picture", 1, "other")
        layer = layer_slider(gr, names)
        active = gr.State("")
        frame = Frame(gr, opened, picture, other, layer, active)
        for words, view in VIEWS:
            with gr.Tab(words.name, id=words.name) as tab:
                view(frame)
            tab.select(_opening(words.name), None, active, show_progress="hidden", api_visibility="private")
        # Set when the page is there: what is open then is computed as after every other choice.
        page.load(_opening(LOOK.name), None, active, show_progress="hidden", api_visibility="private")
    page.queue(max_size=WAITING, default_concurrency_limit=4)
    return page


def theme(gr: Any) -> Any:
    """Return the page's look, with letters that every machine has: none are fetched."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def style() -> str:
    """Return the page's CSS."""
    return (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


def _opening(name: str) -> Any:
    def opening() -> str:
        return name

    return opening


def _subject(opened: Opened) -> str:
    models = list(dict.fromkeys(type(layer.interpreter.model).__name__ for layer in opened.layers))
    if len(models) > 1:
        return "a model"
    layers = list(dict.fromkeys(layer.interpreter.layer or "output" for layer in opened.layers))
    return f"{layers[0]} of {models[0]}" if len(layers) == 1 else models[0]
