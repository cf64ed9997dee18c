"""Choosing plugins: a text box of specs, and controls from the registry that write into it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import gradio as gr

import vlm_eff
from vlm_eff.core.registry import METHODS, Method
from vlm_eff.demo.page.desk import Desk
from vlm_eff.demo.page.failing import telling
from vlm_eff.demo.page.knobs import Knob, knobs_of, methods_for, shown, spec_at, spec_of
from vlm_eff.demo.page.running import visitor_of

LONGEST_ANSWER = 256
_INFO = "One a line, such as pyramiddrop:keep_ratio=0.5; several are attached together."


def spec_box(desk: Desk, rooms: Sequence[str], default: str, *, budget: bool = True, name: str) -> gr.Textbox:
    """A box of specs with controls under it that write into it.

    rooms:  whose methods are offered, see `vlm-eff methods`; budget: offer a share of tokens or entries as well
    name:   of the tab, for the names of its events
    """
    vlm_eff.methods()
    known = {one.name: one for one in methods_for(rooms, desk.family)}
    specs = gr.Textbox(default, lines=2, max_lines=6, label="Plugins", info=_INFO, elem_id=f"{name}-specs")
    with gr.Accordion("Choose a method and turn its knobs", open=False):
        choices = [(f"{one.name}: {one.summary}", one.name) for one in known.values()]
        method = gr.Dropdown(choices, value=None, label="Method")
        if budget:
            with gr.Row():
                share = gr.Slider(
                    0.05, 1.0, 0.25, step=0.05, label="Share of visual tokens (n_eq) or cache entries left"
                )
                at_budget = gr.Button("Add at this budget", scale=0)
            at_budget.click(_at_budget(desk), [specs, method, share], specs, api_name=f"{name}_at_budget")
        gr.render(inputs=method)(_panel(known, specs))
        if desk.offered:
            offered = gr.Dropdown(sorted(desk.offered), value=None, label="Offered by whoever started this page")
            offered.input(_added, [specs, offered], specs, api_visibility="private")
    return specs


def length_slider() -> gr.Slider:
    """How long an answer may become."""
    return gr.Slider(1, LONGEST_ANSWER, 32, step=1, label="Longest answer, tokens")


def length_of(given: float) -> int:
    """The tokens that were chosen, within the limits whoever asks."""
    return max(1, min(int(given), LONGEST_ANSWER))


def _panel(known: dict[str, Method], specs: gr.Textbox) -> Any:
    def panel(name: str | None) -> None:
        if name not in known:
            return
        method, controls = known[name], []
        gr.Markdown(f"{method.summary} Acts {method.acts}. {_paper(method)}")
        knobs = knobs_of(method)
        with gr.Row():
            for knob in knobs:
                controls.append(_control(knob))
        add = gr.Button(f"Add {name} with these settings")

        @telling
        def added(before: str, *values: Any) -> str:
            return _added(before, spec_of(method, dict(zip([knob.name for knob in knobs], values, strict=True))))

        add.click(added, [specs, *controls], specs, api_visibility="private")

    return panel


def _control(knob: Knob) -> gr.components.Component:
    label = knob.name.replace("_", " ") + (" (required)" if knob.required else "")
    if knob.kind == "switch":
        return gr.Checkbox(bool(knob.default), label=label, min_width=120)
    if knob.kind == "choice":
        return gr.Dropdown([(str(one), one) for one in knob.choices], value=knob.default, label=label, min_width=120)
    if knob.kind == "text":
        return gr.Textbox(shown(knob), label=label, min_width=120)
    return gr.Number(knob.default, label=label, precision=0 if knob.kind == "whole" else None, min_width=120)


def _at_budget(desk: Desk) -> Any:
    @telling
    def added(before: str, name: str | None, share: float, request: gr.Request) -> str:
        if not name:
            raise gr.Error("Choose a method first.", print_exception=False)
        METHODS.get(name)
        with desk.working(visitor_of(request), threading.Event()):
            sizes = desk.sizes
        return _added(before, spec_at(name, share, sizes))

    return added


def _added(before: str, spec: str | None) -> str:
    lines = [line for line in before.splitlines() if line.strip()]
    return "\n".join([*lines, spec] if spec and spec not in lines else lines)


def _paper(method: Method) -> str:
    if method.paper[:4].isdigit():
        number = method.paper.split("v")[0]
        return f"Paper: [{method.paper}](https://arxiv.org/abs/{number})."
    return f"Source: {method.paper}."
