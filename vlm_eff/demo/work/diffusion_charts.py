"""Which steps of a denoising run were computed, and what that cost and kept, as charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vlm_eff.core.denoise_report import DenoiseReport
from vlm_eff.demo.work.charts import BARE_COLOUR, COLOUR
from vlm_eff.demo.work.diffusion import Drawn, decibels
from vlm_eff.eval.figure import blank_figure
from vlm_eff.eval.report.plots import plain

_WIDTH = 8.4
_SKIPPED = "#eef2f4"
# steps beyond this leave no room for a number in each
_MOST_WRITTEN = 32


def steps_chart(drawn: Drawn) -> Any:
    """A strip for the full run, one for each denoiser and guidance branch with the plugins, one for fewer steps.

    A cell is a step, filled from below by the share of it that was computed.
    """
    steps, rival = drawn.request.steps, drawn.rival
    strips = branches(drawn.report)
    rows: list[tuple[str, Sequence[float | None], str]] = [("full run", [1.0] * steps, BARE_COLOUR)]
    rows += [(_name(who, len(strips)), shares, COLOUR) for who, shares in strips.items()]
    if rival is not None:
        rows.append((f"bare, {rival.steps} steps", [1.0] * rival.steps, BARE_COLOUR))
    figure = blank_figure(_WIDTH, 0.9 + 0.42 * len(rows))
    axes = figure.subplots()
    for place, (_, shares, colour) in enumerate(rows):
        _strip(axes, place, shares, steps, colour)
    axes.set_yticks([place + 0.5 for place in range(len(rows))], [name for name, _, _ in rows], fontsize=8)
    axes.set(xlim=(0, steps), ylim=(len(rows), 0))
    axes.set_xlabel(f"steps of the full run, of {drawn.report.scheduler}", fontsize=8)
    axes.tick_params(labelsize=8, left=False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[:].set_visible(False)
    words = " or ".join(drawn.stands_in) or "skipped"
    axes.set_title(f"filled: computed; the rest: {words}", fontsize=8, loc="left")
    return figure


def costs_chart(drawn: Drawn) -> Any:
    """Equivalent full evaluations and PSNR to the full run, with the plugins and with fewer steps; bars from zero."""
    bare, rival = drawn.report.evaluations_bare, drawn.rival
    names, colours = ["full run", "plugins"], [BARE_COLOUR, COLOUR]
    evaluations, psnrs = [bare, drawn.report.evaluations], [drawn.psnr]
    if rival is not None:
        names.append(f"{rival.steps} steps")
        colours.append(BARE_COLOUR)
        evaluations.append(bare * rival.steps / drawn.request.steps)
        psnrs.append(rival.psnr)
    figure = blank_figure(_WIDTH, 2.4)
    left, right = figure.subplots(1, 2)
    _bars(left, names, evaluations, [f"{value:.2f}".rstrip("0").rstrip(".") for value in evaluations], colours)
    left.set_title("equivalent full evaluations", fontsize=8)
    # pictures that are the same have no height: the bar stands as high as the highest other one, and says so
    top = max((value for value in psnrs if math.isfinite(value)), default=1.0)
    heights = [min(value, top) for value in psnrs]
    _bars(right, names[1:], heights, [decibels(value) for value in psnrs], colours[1:])
    right.set_title("PSNR to the full run, dB", fontsize=8)
    figure.suptitle(plain(drawn.request.label), fontsize=9)
    return figure


def branches(report: DenoiseReport) -> dict[tuple[str, int], list[float | None]]:
    """Share of each step that was computed, by denoiser and guidance branch; None where it was not called."""
    found: dict[tuple[str, int], list[list[float]]] = {}
    last = max((call.step for call in report.calls), default=0)
    for call in report.calls:
        row = found.setdefault((call.denoiser, call.branch), [[] for _ in range(last + 1)])
        row[call.step].append(call.computed)
    return {
        who: [sum(shares) / len(shares) if shares else None for shares in row] for who, row in sorted(found.items())
    }


def _name(who: tuple[str, int], strips: int) -> str:
    denoiser, branch = who
    return "with the plugins" if strips == 1 else f"{denoiser}, branch {branch}"


def _strip(axes: Any, place: int, shares: Sequence[float | None], steps: int, colour: str) -> None:
    width = steps / len(shares)
    gap = 0.06 * width
    for number, share in enumerate(shares):
        if share is None:
            continue
        left, wide = number * width + gap / 2, width - gap
        axes.barh(place + 0.5, wide, left=left, height=0.7, color=_SKIPPED, edgecolor="0.75", linewidth=0.5)
        filled = 0.7 * min(max(share, 0.0), 1.0)
        axes.bar(left + wide / 2, filled, wide, bottom=place + 0.85 - filled, color=colour)
        if 0.005 < share < 0.995 and len(shares) <= _MOST_WRITTEN:
            axes.text(left + wide / 2, place + 0.5, f"{share:.0%}", ha="center", va="center", fontsize=6)


def _bars(axes: Any, names: Sequence[str], heights: Sequence[float], labels: Sequence[str], colours: list[str]) -> None:
    drawn = axes.bar(range(len(names)), heights, color=colours, width=0.6)
    axes.bar_label(drawn, labels=labels, fontsize=8, padding=2)
    axes.set_ylim(0, 1.2 * max(*heights, 1e-9))
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
