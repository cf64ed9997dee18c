"""Loyalty against what a question costs, of several methods at one budget."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from vlm_eff.demo.work.compare import Compared, Entry
from vlm_eff.eval.compare import Arm
from vlm_eff.eval.figure import blank_figure
from vlm_eff.eval.report.plots import COST_AXES, Style, front, plain, styles

_COSTS: dict[str, Callable[[Arm], float]] = {
    "flops_ratio": lambda arm: arm.prefill_flops_ratio,
    "kv_bytes_ratio": lambda arm: arm.kv_bytes_ratio,
    # drawn only where it was measured
    "time": lambda arm: arm.time_to_first_token.ratio if arm.time_to_first_token else math.nan,
}


def pareto_chart(compared: Compared) -> Any:
    """A panel a cost, with / bare: the bare model, every method and every baseline; all axes from zero.

    Baselines are hollow and grey; the front is drawn over everything else.
    """
    names = [name for name in _COSTS if name != "time" or compared.contest.pairs]
    entries = compared.entries
    kinds = ["bare", *("baseline" if entry.baseline else "method" for entry in entries)]
    figure = blank_figure(3.1 * len(names) + 2.6, 3.6)
    for place, (name, axes) in enumerate(zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True)):
        _panel(axes, name, compared, styles(kinds))
        axes.set_ylabel("loyalty to the bare answer" if place == 0 else "", fontsize=8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=7)
    tokens = f"{compared.n_eq} of {compared.sizes.visual_tokens} visual tokens, mean over layers"
    figure.suptitle(f"{plain(textwrap.shorten(compared.contest.prompt, 34))}: {tokens}", fontsize=9)
    return figure


def _panel(axes: Any, name: str, compared: Compared, drawn: Sequence[Style]) -> None:
    axes.plot([1], [compared.loyalty], linestyle="none", label="bare", clip_on=False, **drawn[0].point)
    for entry, style in zip(compared.entries, drawn[1:], strict=True):
        cost = _COSTS[name](entry.arm)
        label = plain(entry.method)
        axes.errorbar([cost], [entry.loyalty], xerr=_arms(name, entry), linestyle="none", label=label,
                      capsize=2, elinewidth=0.8, clip_on=False, **style.point)  # fmt: skip
    real = [(_COSTS[name](entry.arm), entry.loyalty) for entry in compared.entries if not entry.baseline]
    points = [(1.0, compared.loyalty), *real]
    best = [points[index] for index in front(points)]
    axes.plot(*zip(*best, strict=True), drawstyle="steps-post", color="0.4", linewidth=0.8, zorder=0, label="front")
    axes.set(xlim=(0, 1.05 * max(1.0, *(_reach(name, entry) for entry in compared.entries))), ylim=(0, 1.05))
    axes.set_xlabel(plain(COST_AXES[name]), fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def _arms(name: str, entry: Entry) -> list[list[float]] | None:
    """How far the interval of a time reaches to both sides."""
    times = entry.arm.time_to_first_token
    if name != "time" or times is None:
        return None
    return [[max(0.0, times.ratio - times.low)], [max(0.0, times.high - times.ratio)]]


def _reach(name: str, entry: Entry) -> float:
    """The most that is drawn of an entry along the axis of a cost."""
    times = entry.arm.time_to_first_token
    return times.high if name == "time" and times is not None else _COSTS[name](entry.arm)
