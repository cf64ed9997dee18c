"""The tab "KV cache": what plugins of the cache keep of text and pictures in each head, and what error that makes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from vlm_eff.core.errors import CapabilityError
from vlm_eff.demo.page.controls import length_of, length_slider, spec_box
from vlm_eff.demo.page.desk import Desk
from vlm_eff.demo.page.failing import telling, told
from vlm_eff.demo.page.image_tab import question_inputs, stopper
from vlm_eff.demo.page.running import both_answers, visitor_of
from vlm_eff.demo.page.specs import plugins_of
from vlm_eff.demo.page.uploads import pictures
from vlm_eff.demo.work.image import Question
from vlm_eff.demo.work.kv import METER_STEPS, CacheAsked, ask_cache
from vlm_eff.demo.work.kv_charts import bytes_chart, kept_chart
from vlm_eff.eval.kv_plot import errors_figure

_DEFAULT = "adakv:keep_ratio=0.3"
_ALL = "all heads"
_KEPT = "What is stored of the prompt right behind it, by layer and key head; then its bytes, and bits a number takes."
_METER = (
    f"The error meter: the model answers with a full cache, made to go on for {METER_STEPS} tokens, and the queries of "
    "these tokens attend to the compressed cache as well. The error is |o' - o| / |o| of a layer's attention output; "
    "layers are measured apart, so it is no forecast of the answer."
)


def add(desk: Desk) -> None:
    """Put the tab on the page."""
    with gr.Tab("KV cache", id="kv"), gr.Row():
        with gr.Column(scale=2):
            files, prompt = question_inputs(desk, "kv")
            specs = spec_box(desk, ("kvcache",), _DEFAULT, name="kv")
            length = length_slider()
            with gr.Row():
                ask = gr.Button("Ask", variant="primary", elem_id="kv-ask")
                stop = gr.Button("Stop")
        with gr.Column(scale=3):
            with gr.Row():
                bare = gr.Textbox(label="Full cache", lines=2, interactive=False)
                arm = gr.Textbox(label="Compressed cache", lines=2, interactive=False, elem_id="kv-answer")
            found = gr.State(None)
            with gr.Row():
                layer = gr.Slider(0, 1, 0, step=1, label="Decoder layer", elem_id="kv-layer")
                head = gr.Dropdown([_ALL], value=_ALL, label="Key head", elem_id="kv-head")
            gr.Markdown("Clear cells are stored, dimmer ones in fewer bits or by fewer heads; dark ones are gone.")
            cells = gr.Image(show_label=False, format="png", interactive=False, height=430)
            why = gr.Markdown()
            gr.Markdown(_KEPT)
            kept = gr.Plot(show_label=False)
            held = gr.Plot(show_label=False)
            gr.Markdown(_METER)
            errors = gr.Plot(show_label=False)
            stats = gr.Code(label="handle.stats()", language=None, interactive=False)
            record = gr.File(label="All numbers, JSON", interactive=False)
    outputs = [bare, arm, found, layer, head, cells, why, kept, held, errors, stats, record]
    inputs = [files, prompt, specs, length]
    ask.click(_asker(desk), inputs, outputs, api_name="ask_kv", concurrency_id="model", concurrency_limit=1)
    for chosen, name in ((layer, "kv_layer"), (head, "kv_head")):
        chosen.input(show_cells, [found, layer, head], [cells, why], api_name=name, show_progress="hidden")
    stop.click(stopper(desk), None, None, api_name="kv_stop", queue=False)


@telling
def show_cells(found: CacheAsked | None, layer: float, head: str) -> tuple[Image.Image | None, str]:
    """The pictures with what one layer and head stores, or why they cannot be drawn."""
    if found is None:
        return None, ""
    try:
        return found.cells(int(layer), None if head == _ALL else int(head.removeprefix("head "))), ""
    except CapabilityError as error:
        return None, str(error)


def _asker(desk: Desk) -> Any:
    def ask(
        files: list[str] | None,
        prompt: str,
        specs: str,
        length: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  gradio finds it by its default
    ) -> Iterator[Any]:
        with told():
            question = Question(
                tuple(pictures(files)),
                prompt,
                plugins_of(specs, desk.offered),
                max_new_tokens=length_of(length),
            )
        yield from both_answers(
            desk,
            visitor_of(request),
            lambda watch: ask_cache(desk.subject, question, watch),
            progress,
            lambda found: _shown(desk, found),
            others=10,
        )

    return ask


def _shown(desk: Desk, found: CacheAsked) -> tuple[Any, ...]:
    last = found.layers[-1]
    cells, why = show_cells(found, last, _ALL)
    record = desk.keep("kv", found.to_dict())
    return (
        found.bare,
        found.arm,
        found,
        gr.Slider(minimum=found.layers[0], maximum=last, value=last),
        gr.Dropdown([_ALL, *(f"head {head}" for head in range(found.heads))], value=_ALL),
        cells,
        why or f"{found.device}.",
        kept_chart(found.kept),
        bytes_chart(found.kept),
        errors_figure(found.errors),
        str(found.stats),
        record,
    )
