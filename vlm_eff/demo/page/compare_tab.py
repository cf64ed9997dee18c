"""The tab "Compare": several methods at one budget beside the blind baselines, on one question."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

import vlm_eff
from vlm_eff.core.files import write_file
from vlm_eff.demo.page.desk import Desk
from vlm_eff.demo.page.failing import told
from vlm_eff.demo.page.image_tab import question_inputs, stopper
from vlm_eff.demo.page.knobs import methods_for
from vlm_eff.demo.page.running import result_of, visitor_of
from vlm_eff.demo.page.specs import refuse_files
from vlm_eff.demo.page.uploads import pictures
from vlm_eff.demo.work.code import comparison_code
from vlm_eff.demo.work.compare import HEAD, MOST_METHODS, MOST_PAIRS, MOST_TOKENS, Compared, Contest, contend
from vlm_eff.demo.work.compare_chart import pareto_chart
from vlm_eff.eval.figure import png_of

_FIRST = ("pyramiddrop", "fastv", "visionzip", "divprune")
_METHODS = "A spec such as v2drop:schedule=paper may be typed; keep_ratio is set by the budget."
_PAIRS = "Each method against the bare model, interleaved; 0 times nothing. On a CPU only the ratio means something."


def add(desk: Desk) -> None:
    """Put the tab on the page."""
    with gr.Tab("Compare", id="compare"), gr.Row():
        with gr.Column(scale=2):
            files, prompt = question_inputs(desk, "compare")
            settings = _settings(desk)
            with gr.Row():
                ask = gr.Button("Compare", variant="primary", elem_id="compare-ask")
                stop = gr.Button("Stop")
        with gr.Column(scale=3):
            outputs = _results()
    ask.click(
        _comparer(desk),
        [files, prompt, *settings],
        outputs,
        api_name="compare",
        concurrency_id="model",
        concurrency_limit=1,
    )
    stop.click(stopper(desk), None, None, api_visibility="private", queue=False)


def _settings(desk: Desk) -> list[Any]:
    vlm_eff.methods()
    names = [one.name for one in methods_for(("tokens",), desk.family)]
    methods = gr.Dropdown(
        names,
        value=[name for name in _FIRST if name in names],
        multiselect=True,
        max_choices=MOST_METHODS,
        allow_custom_value=True,
        label="Methods",
        info=_METHODS,
        elem_id="compare-methods",
    )
    share = gr.Slider(0, 1, 0.25, step=0.01, label="Budget: share of the visual tokens, averaged over layers (n_eq)")
    length = gr.Slider(1, MOST_TOKENS, 16, step=1, label="Longest answer, tokens")
    pairs = gr.Slider(0, MOST_PAIRS, 0, step=1, label="Timed pairs a method", info=_PAIRS)
    return [methods, share, length, pairs]


def _results() -> list[Any]:
    table = gr.Dataframe(
        headers=list(HEAD),
        column_widths=["26%", "14%", "9%", "11%", "8%", "9%", "9%", "14%"],
        interactive=False,
        wrap=True,
        label="One question, one budget",
    )
    said = gr.Markdown()
    plot = gr.Plot(show_label=False)
    gr.Markdown("What is left at the last layer: clear cells are kept, outlined ones stand for others too.")
    kept = gr.Gallery(
        show_label=False,
        columns=4,
        height=420,
        object_fit="contain",
        format="png",
    )
    code = gr.Code(label="The same in Python", language="python", interactive=False, elem_id="compare-code")
    with gr.Row():
        record = gr.File(label="Record, JSON", interactive=False)
        picture = gr.File(label="Plot, PNG", interactive=False)
    return [table, said, plot, kept, code, record, picture]


def _comparer(desk: Desk) -> Any:
    def compare(
        files: list[str] | None,
        prompt: str,
        methods: list[str] | None,
        share: float,
        length: float,
        pairs: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  gradio finds it by its default
    ) -> tuple[Any, ...]:
        with told():
            specs = tuple(one.strip() for one in methods or ())
            for spec in specs:
                refuse_files(spec)
            # an interval needs three pairs
            timed = 0 if pairs < 1 else max(3, int(pairs))
            contest = Contest(tuple(pictures(files)), prompt, specs, share, int(length), timed)
        found = result_of(desk, visitor_of(request), lambda watch: contend(desk.subject, contest, watch), progress)
        return _shown(desk, found, [Path(path).name for path in files or ()])

    return compare


def _shown(desk: Desk, found: Compared, names: Sequence[str]) -> tuple[Any, ...]:
    contest, plot = found.contest, pareto_chart(found)
    code = comparison_code(
        found.model,
        found.methods,
        contest.prompt,
        share=contest.share,
        pictures=names,
        max_new_tokens=contest.max_new_tokens,
        pairs=contest.pairs,
    )
    stem = f"compare-{uuid.uuid4().hex[:8]}"
    kept = [(one, entry.arm.plugin) for entry in found.entries for one in entry.kept]
    return (
        [list(row) for row in found.rows()],
        "\n\n".join([found.caption(), *(f"Left out, {label}: {why}" for label, why in found.unreachable.items())]),
        plot,
        kept,
        code,
        str(found.to_record().write(desk.folder / f"{stem}.json")),
        str(write_file(desk.folder / f"{stem}.png", png_of(plot))),
    )
