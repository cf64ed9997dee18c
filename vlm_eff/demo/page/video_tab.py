"""The tab "Video": a clip, a question, the answer bare and with plugins, and what those kept of each frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from vlm_eff.core.errors import CapabilityError
from vlm_eff.demo.page.controls import length_of, length_slider, spec_box
from vlm_eff.demo.page.desk import Desk
from vlm_eff.demo.page.failing import telling, told
from vlm_eff.demo.page.image_tab import stopper
from vlm_eff.demo.page.running import both_answers, visitor_of
from vlm_eff.demo.page.specs import plugins_of
from vlm_eff.demo.work.charts import layer_bars, pair_bars
from vlm_eff.demo.work.clips import CLIPS, MOST_FRAMES, Chosen, drawn_clip, drawn_questions, read_clip
from vlm_eff.demo.work.costs import cost_pairs, layer_rows
from vlm_eff.demo.work.video import ClipAsked, ClipQuestion, FramesKept, ask_clip, plain_strip
from vlm_eff.eval.runs.asking import as_pictures
from vlm_eff.video.conventions import CONVENTIONS

_PICTURES = "pyramiddrop:keep_ratio=0.5"
_VIDEOS = "evs:keep_ratio=0.5"
_FRAMES = 8


def add(desk: Desk) -> None:
    """Put the tab on the page."""
    watches = desk.subject.watches
    with gr.Tab("Video", id="video"), gr.Row():
        with gr.Column(scale=2):
            clip = _clip_inputs()
            prompt = gr.Textbox("is there a circle?", label="Question", lines=1, elem_id="video-prompt")
            specs = spec_box(desk, ("tokens", "kvcache", "recipes"), _VIDEOS if watches else _PICTURES, name="video")
            length = length_slider()
            with gr.Row():
                ask = gr.Button("Ask", variant="primary", elem_id="video-ask")
                stop = gr.Button("Stop")
        with gr.Column(scale=3):
            gr.Markdown(_manner(watches))
            with gr.Row():
                bare = gr.Textbox(label="Bare model", lines=2, interactive=False)
                arm = gr.Textbox(label="With the plugins", lines=2, interactive=False, elem_id="video-answer")
            kept = gr.State(None)
            layer = gr.Slider(0, 1, 0, step=1, label="Decoder layer", elem_id="video-layer")
            gr.Markdown("Clear cells are kept, outlined ones stand for others too, dark ones are gone.")
            frames = gr.Image(show_label=False, format="png", interactive=False)
            why = gr.Markdown()
            shares = gr.Plot(show_label=False)
            costs = gr.Plot(show_label=False)
            layers = gr.Plot(show_label=False)
            stats = gr.Code(label="handle.stats()", language=None, interactive=False)
            record = gr.File(label="All numbers, JSON", interactive=False)
    outputs = [bare, arm, kept, layer, frames, why, shares, costs, layers, stats, record]
    ask.click(
        _asker(desk),
        [*clip, prompt, specs, length],
        outputs,
        api_name="ask_video",
        concurrency_id="model",
        concurrency_limit=1,
    )
    layer.change(show_layer, [kept, layer], [frames, why, shares], api_name="video_layer", show_progress="hidden")
    stop.click(stopper(desk), None, None, api_name="video_stop", queue=False)


def _clip_inputs() -> list[gr.components.Component]:
    """A file or the number of a drawn clip, and which of its frames; they are shown as soon as they are chosen."""
    file = gr.File(file_types=list(CLIPS), label="Clip", height=120, elem_id="video-file")
    number = gr.Number(0, precision=0, minimum=0, label="Without a file: number of a drawn clip of moving shapes")
    with gr.Row():
        convention = gr.Dropdown(list(CONVENTIONS), value="middle", label="Frames are chosen as by")
        count = gr.Slider(1, MOST_FRAMES, _FRAMES, step=1, label="Frames")
    strip, words = preview(None, 0, "middle", _FRAMES)
    shown = gr.Image(strip, show_label=False, format="png", interactive=False)
    said = gr.Markdown(words)
    chosen = [file, number, convention, count]
    gr.on(
        [one.change for one in (file, number, convention, count)],
        preview,
        chosen,
        [shown, said],
        api_name="video_preview",
        show_progress="hidden",
        trigger_mode="always_last",
    )
    return chosen


def chosen_clip(file: str | None, number: float, convention: str, count: float) -> Chosen:
    """The frames that a visitor chose of a file, or of a drawn clip.

    Raises:
        InputError, ConfigError: as `read_clip` and `drawn_clip`.
    """
    if file:
        return read_clip(file, convention, int(count))
    return drawn_clip(int(number or 0), convention, int(count))


@telling
def preview(file: str | None, number: float, convention: str, count: float) -> tuple[Image.Image, str]:
    """The frames that a visitor chose, and what is known of them."""
    chosen = chosen_clip(file, number, convention, count)
    asked = "" if file else f" The evaluation task asks of it: {' '.join(drawn_questions(int(number or 0)))}"
    return plain_strip(tuple(as_pictures(chosen.clip)), chosen.clip.timestamps), chosen.said + "." + asked


def show_layer(kept: FramesKept | None, layer: float) -> tuple[Any, str, Any]:
    """The frames of one decoder layer, why they are not drawn, and what is left of each."""
    if kept is None:
        return None, "", None
    at = max(0, min(int(layer), kept.layers - 1))
    try:
        return kept.strip(at), "", kept.chart(at)
    except CapabilityError as error:
        return kept.plain_strip(), str(error), kept.chart(at)


def _manner(watches: bool) -> str:
    if watches:
        return "The model takes videos: the frames go in as one video."
    return (
        "This model takes no videos: the frames go in as pictures, one after the other, and methods for videos (evs, "
        "dycoke, fastvid, prunevid, vcast) drop nothing of them."
    )


def _asker(desk: Desk) -> Any:
    def ask(
        file: str | None,
        number: float,
        convention: str,
        count: float,
        prompt: str,
        specs: str,
        length: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  gradio finds it by its default
    ) -> Iterator[Any]:
        with told():
            question = ClipQuestion(
                chosen_clip(file, number, convention, count),
                prompt,
                plugins_of(specs, desk.offered),
                max_new_tokens=length_of(length),
            )
        yield from both_answers(
            desk,
            visitor_of(request),
            lambda watch: ask_clip(desk.subject, question, watch),
            progress,
            lambda found: _shown(desk, found),
            others=9,
        )

    return ask


def _shown(desk: Desk, found: ClipAsked) -> tuple[Any, ...]:
    last = found.frames.layers - 1
    strip, why, chart = show_layer(found.frames, last)
    record = desk.keep("video", found.to_dict())
    return (
        found.bare,
        found.arm,
        found.frames,
        gr.Slider(maximum=last, value=last),
        strip,
        why or found.said,
        chart,
        pair_bars(cost_pairs(found.stats), found.question.label),
        layer_bars(layer_rows(found.stats)),
        str(found.stats),
        record,
    )
