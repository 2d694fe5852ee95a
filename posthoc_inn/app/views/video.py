"""Video: a clip frame by frame, and an animation to keep."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from posthoc_inn.analysis.frames import ANIMATIONS
from posthoc_inn.app import html
from posthoc_inn.app.fitted import Shown
from posthoc_inn.app.parts.video import FRAMES, Clip, clip_of_file, frame_of, turning, watch, written
from posthoc_inn.app.views.frame import ONE_AT_A_TIME, Frame, answering
from posthoc_inn.app.views.pictures import needed
from posthoc_inn.app.words import VIDEO


def video_view(frame: Frame) -> None:
    """Show a slider over the frames, and a button that downloads both side by side."""
    gr, opened = frame.gr, frame.opened
    gr.Markdown(VIDEO.about)
    fixed = gr.Radio(
        [("what the layer ignores (v)", "v"), ("what it sees (z)", "z")], value="v", label="Held as in the picture"
    )
    with gr.Row():
        turn = gr.Button("Turn the picture around", variant="primary", elem_id="video-turn", min_width=160)
        send = gr.UploadButton(
            f"Send a clip (GIF, WebP, PNG; {FRAMES} frames)",
            file_types=sorted(ANIMATIONS),
            elem_id="video-upload",
            min_width=160,
        )
    out = gr.HTML(html.of_advice("Turn the picture, or send a clip."), elem_id="video-out")
    clip = gr.State()
    number = gr.Slider(1, 2, 1, step=1, label="Frame", visible=False, elem_id="video-frame")
    download = gr.DownloadButton("Download the animation", visible=False, elem_id="video-download", size="sm")

    def run(shown: Shown | None, layer: float, fixed: Any, frames: Any, progress: Any) -> Any:
        fitted, one = opened.layer(layer), needed(shown)
        told = lambda k: progress(k / FRAMES, f"frame {k}")  # noqa: E731
        found = watch(fitted, one, frames, fixed=fixed, done=told)
        folder = Path(tempfile.mkdtemp(prefix="clip-", dir=_cache(gr)))
        path = written(found, folder / "posthoc-inn.webp")
        first = html.of_answer(frame_of(found, 1), is_wide=True)
        count = len(found.frames)
        return (
            first,
            found,
            gr.Slider(1, max(2, count), 1, visible=count > 1),
            gr.DownloadButton(value=str(path), visible=True),
        )

    def of_picture(shown: Any, layer: Any, fixed: Any, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        return run(shown, layer, fixed, turning(needed(shown).picture), progress)

    def of_file(shown: Any, layer: Any, fixed: Any, path: Any, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        return run(shown, layer, fixed, clip_of_file(path or ""), progress)

    def show(found: Clip | None, number: float) -> str:
        if found is None:
            return html.of_advice("Turn the picture, or send a clip.")
        return html.of_answer(frame_of(found, number), is_wide=True)

    outputs = [out, clip, number, download]
    common: dict[str, Any] = {"api_visibility": "private", "show_progress_on": [out], **ONE_AT_A_TIME}
    turn.click(answering(of_picture, 4), [frame.picture, frame.layer, fixed], outputs, **common)
    send.upload(answering(of_file, 4), [frame.picture, frame.layer, fixed, send], outputs, **common)
    number.change(
        answering(show, 1),
        [clip, number],
        out,
        trigger_mode="always_last",
        show_progress="hidden",
        api_visibility="private",
        **ONE_AT_A_TIME,
    )
    frame.explain(VIDEO)


def _cache(gr: Any) -> str:
    """Return gradio's own folder of what it serves, which it empties (`delete_cache`)."""
    from gradio.utils import get_upload_folder

    folder: str = get_upload_folder()
    Path(folder).mkdir(parents=True, exist_ok=True)
    return folder
