"""The tab "Image": pictures, a question, the answer bare and with plugins, and what those kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from vlm_eff.demo.page.controls import length_of, length_slider, spec_box
from vlm_eff.demo.page.desk import Desk
from vlm_eff.demo.page.failing import telling, told
from vlm_eff.demo.page.running import both_answers, visitor_of
from vlm_eff.demo.page.specs import plugins_of
from vlm_eff.demo.page.uploads import PICTURES, pictures
from vlm_eff.demo.work.code import code_for
from vlm_eff.demo.work.image import Looked, Question, cost_chart, layers_chart, look

_DEFAULT = "pyramiddrop:keep_ratio=0.5"
_MOST_PAIRS = 40
_SECONDS = "Times are medians of interleaved pairs in this process; on a CPU only their ratio means something."

Kept = tuple[tuple[Image.Image, ...], ...]


def add(desk: Desk) -> None:
    """Put the tab on the page."""
    with gr.Tab("Image", id="image"), gr.Row():
        with gr.Column(scale=2):
            files, prompt = question_inputs(desk, "image")
            specs = spec_box(desk, ("tokens", "kvcache", "recipes"), _DEFAULT, name="image")
            with gr.Accordion("More", open=False):
                length = length_slider()
                pairs = gr.Slider(0, _MOST_PAIRS, 6, step=1, label="Timed pairs; 0 times nothing", info=_SECONDS)
                seed = gr.Number(0, precision=0, label="Seed of the order in the pairs; answers are greedy")
            with gr.Row():
                ask = gr.Button("Ask", variant="primary", elem_id="image-ask")
                stop = gr.Button("Stop")
        with gr.Column(scale=3):
            with gr.Row():
                bare = gr.Textbox(label="Bare model", lines=2, interactive=False)
                arm = gr.Textbox(label="With the plugins", lines=2, interactive=False, elem_id="image-answer")
            kept_state, tower_state = gr.State(()), gr.State(())
            layer = gr.Slider(0, 1, 0, step=1, label="Decoder layer", elem_id="image-layer")
            gallery = gr.Gallery(
                label="What is left: clear cells are kept, outlined ones stand for others too, dark ones are gone",
                columns=2,
                height=440,
                fit_columns=False,
                format="png",
                object_fit="contain",
                elem_id="image-kept",
            )
            why = gr.Markdown()
            costs = gr.Plot(show_label=False)
            layers = gr.Plot(show_label=False)
            code = gr.Code(label="The same in Python", language="python", interactive=False)
            stats = gr.Code(label="handle.stats()", language=None, interactive=False)
            record = gr.File(label="All numbers, JSON", interactive=False)
    outputs = [bare, arm, kept_state, tower_state, layer, gallery, why, costs, layers, code, stats, record]
    inputs = [files, prompt, specs, length, pairs, seed]
    ask.click(_asker(desk), inputs, outputs, api_name="ask_image", concurrency_id="model", concurrency_limit=1)
    layer.change(
        show_layer, [kept_state, tower_state, layer], gallery, api_visibility="private", show_progress="hidden"
    )
    stop.click(stopper(desk), None, None, api_name="stop", queue=False)


def question_inputs(desk: Desk, name: str) -> tuple[gr.File, gr.Textbox]:
    """Pictures and a question about them, with examples to choose from."""
    titles = [one.title for one in desk.examples]
    example = gr.Dropdown(titles, value=titles[0], label="Example")
    first = desk.examples[0]
    files = gr.File(
        [str(first.path)],
        file_count="multiple",
        file_types=list(PICTURES),
        label="Pictures",
        height=120,
        elem_id=f"{name}-files",
    )
    preview = gr.Gallery(
        [str(first.path)],
        columns=3,
        height=180,
        fit_columns=False,
        show_label=False,
        interactive=False,
        object_fit="contain",
    )
    prompt = gr.Textbox(first.prompt, label="Question", lines=1, elem_id=f"{name}-prompt")

    def chosen(title: str) -> tuple[list[str], str]:
        one = next(one for one in desk.examples if one.title == title)
        return [str(one.path)], one.prompt

    @telling
    def previewed(paths: list[str] | None) -> list[Image.Image]:
        return pictures(paths) if paths else []

    example.input(chosen, example, [files, prompt], api_visibility="private")
    files.change(previewed, files, preview, api_name=f"{name}_preview", show_progress="hidden")
    return files, prompt


def stopper(desk: Desk) -> Any:
    """A handler that stops all of the visitor's own work."""

    def stop(request: gr.Request) -> None:
        count = desk.stop(visitor_of(request))
        gr.Info("Stopping." if count else "Nothing is running.", duration=3)

    return stop


def show_layer(kept: Kept, tower: tuple[Image.Image, ...], layer: float) -> list[tuple[Image.Image, str]]:
    """The pictures of one decoder layer, and behind them those of the end of the tower."""
    at = min(int(layer), len(kept) - 1)
    shown = [(one, f"decoder layer {at}") for one in kept[at]] if kept else []
    return [*shown, *((one, "end of the vision tower") for one in tower)]


def _asker(desk: Desk) -> Any:
    def ask(
        files: list[str] | None,
        prompt: str,
        specs: str,
        length: float,
        pairs: float,
        seed: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  gradio finds it by its default
    ) -> Iterator[Any]:
        with told():
            question = Question(
                tuple(pictures(files)),
                prompt,
                plugins_of(specs, desk.offered),
                max_new_tokens=length_of(length),
                pairs=_pairs(pairs),
                seed=int(seed or 0),
            )
        yield from both_answers(
            desk,
            visitor_of(request),
            lambda watch: look(desk.subject, question, watch),
            progress,
            lambda found: _shown(desk, found, [Path(one).name for one in files or ()]),
            others=10,
        )

    return ask


def _pairs(pairs: float) -> int:
    # an interval needs three pairs
    return 0 if pairs < 1 else max(3, min(int(pairs), _MOST_PAIRS))


def _code(desk: Desk, found: Looked, names: list[str]) -> str:
    question = found.question
    return code_for(
        desk.subject.name,
        list(question.plugins),
        question.prompt,
        pictures=names,
        max_new_tokens=question.max_new_tokens,
        dtype=str(desk.subject.model.dtype).removeprefix("torch."),
        device=desk.subject.device.type,
    )


def _shown(desk: Desk, found: Looked, names: list[str]) -> tuple[Any, ...]:
    last = len(found.report.visual_per_layer) - 1
    where = f"{found.device}. " + (f"Times: {found.timing}." if found.times else "Nothing was timed.")
    record = desk.keep("image", found.to_dict())
    return (
        found.bare,
        found.arm,
        found.kept,
        found.tower,
        gr.Slider(maximum=last, value=last),
        show_layer(found.kept, found.tower, last),
        found.no_overlay or where,
        cost_chart(found),
        layers_chart(found),
        _code(desk, found, names),
        str(found.stats),
        record,
    )
