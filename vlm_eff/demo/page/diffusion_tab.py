"""The tab "Diffusion": one picture in full, with plugins, and with as few steps as cost the same."""

from __future__ import annotations

import uuid
from typing import Any

import gradio as gr

from vlm_eff.core.errors import InputError, explain
from vlm_eff.demo.page.controls import spec_box
from vlm_eff.demo.page.desk import Desk
from vlm_eff.demo.page.failing import told
from vlm_eff.demo.page.image_tab import stopper
from vlm_eff.demo.page.running import result_of, visitor_of
from vlm_eff.demo.page.specs import plugins_of
from vlm_eff.demo.work.code import drawing_code
from vlm_eff.demo.work.diffusion import HEAD, MOST_STEPS, Drawn, Request, draw
from vlm_eff.demo.work.diffusion_charts import costs_chart, steps_chart
from vlm_eff.demo.work.watching import Watch
from vlm_eff.eval.painter import SMALL
from vlm_eff.reference.diffusion import CLASSES

_DEFAULT = "forecast:interval=2"
_LONGEST_PROMPT = 1000
_MISSING = 'Nothing can be drawn here: diffusers is not installed. Run: `pip install "vlm-eff[diffusion]"`.'


def add(desk: Desk) -> None:
    """Put the tab on the page."""
    with gr.Tab("Diffusion", id="diffusion"):
        if desk.painter is None:
            gr.Markdown(_MISSING)
            return
        with gr.Row():
            with gr.Column(scale=2):
                inputs = [*_subject(desk), *_settings(desk)]
                with gr.Row():
                    ask = gr.Button("Draw", variant="primary", elem_id="diffusion-draw")
                    stop = gr.Button("Stop")
            with gr.Column(scale=3):
                outputs = _results()
    ask.click(_drawer(desk), inputs, outputs, api_name="draw", concurrency_id="model", concurrency_limit=1)
    stop.click(stopper(desk), None, None, api_visibility="private", queue=False)


def _subject(desk: Desk) -> list[Any]:
    """What is drawn: a class of the small pipelines; a prompt, or a class, of others."""
    small = desk.painter_name in SMALL
    prompt = gr.Textbox("", label="Prompt", lines=2, visible=not small, max_length=_LONGEST_PROMPT)
    if small:
        choices = [(f"{number}: {name}", number) for number, name in enumerate(CLASSES)]
        # what is no class is refused with a sentence, by the pipeline itself
        number: Any = gr.Dropdown(choices, value=3, label="Class", allow_custom_value=True)
    else:
        number = gr.Number(None, label="Class number, for pipelines without prompts", precision=0)
    return [prompt, number]


def _settings(desk: Desk) -> list[Any]:
    specs = spec_box(desk, ("diffusion",), _DEFAULT, budget=False, name="diffusion")
    steps = gr.Slider(2, MOST_STEPS, 20, step=1, label="Steps of the full run")
    guidance = gr.Slider(0, 15, 1.5 if desk.painter_name in SMALL else 5, step=0.5, label="Guidance")
    seed = gr.Number(0, precision=0, label="Seed")
    return [specs, steps, guidance, seed]


def _results() -> list[Any]:
    said = gr.Markdown(elem_id="diffusion-said")
    pair = gr.ImageSlider(label="In full | with the plugins", format="png", height=400)
    with gr.Row():
        apart = gr.Image(label="Absolute difference, made stronger", format="png", height=280)
        rival = gr.Image(label="Bare, with fewer steps at the same cost", format="png", height=280)
    steps = gr.Plot(show_label=False)
    costs = gr.Plot(show_label=False)
    table = gr.Dataframe(headers=list(HEAD), interactive=False, wrap=True, label="Numbers")
    stats = gr.Code(label="handle.stats()", language=None, interactive=False)
    code = gr.Code(label="The same in Python", language="python", interactive=False, elem_id="diffusion-code")
    record = gr.File(label="All numbers, JSON", interactive=False)
    return [said, pair, apart, rival, steps, costs, table, stats, code, record]


def _drawer(desk: Desk) -> Any:
    make = desk.painter
    assert make is not None  # without one there is no button

    def paint(
        prompt: str,
        number: float | str | None,
        specs: str,
        steps: float,
        guidance: float,
        seed: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  gradio finds it by its default
    ) -> tuple[Any, ...]:
        with told():
            plugins = plugins_of(specs, desk.offered)
            wanted = Request(plugins, _whole(steps), guidance, _whole(seed))
            classes = _classes(number)
            text = (prompt or "").strip()

        def work(watch: Watch) -> Drawn:
            watch.step(0.0, "loading the pipeline")
            return draw(make(text, classes), wanted, watch)

        return _shown(desk, result_of(desk, visitor_of(request), work, progress))

    return paint


def _whole(value: Any) -> Any:
    """A number of the browser as a whole one where it is; whatever else stays, and is refused with its name."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _classes(number: float | str | None) -> tuple[int, ...]:
    if number is None or number == "":
        return ()
    try:
        made = int(number)
        if made != float(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise InputError(explain(f"class {number!r}", "a whole number", "Choose one of the list")) from None
    return (made,)


def _shown(desk: Desk, drawn: Drawn) -> tuple[Any, ...]:
    request, rival = drawn.request, drawn.rival
    code = drawing_code(
        drawn.model,
        tuple(request.plugins),
        prompt=str(drawn.asked.get("prompt", "")),
        classes=drawn.asked.get("labels", drawn.asked.get("class_labels", ())),
        steps=request.steps,
        guidance=request.guidance,
        seed=request.seed,
    )
    record = drawn.to_record().write(desk.folder / f"drawing-{uuid.uuid4().hex[:8]}.json")
    return (
        f"{drawn.sentence()} The difference is drawn {drawn.amplified} times as strong as it is. One picture says "
        "little: the diffusion guide has tables over many.",
        (drawn.full, drawn.made),
        drawn.difference,
        None if rival is None else rival.picture,
        steps_chart(drawn),
        costs_chart(drawn),
        [list(row) for row in drawn.rows()],
        drawn.details,
        code,
        str(record),
    )
