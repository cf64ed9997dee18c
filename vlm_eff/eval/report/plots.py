"""The plots of a report. Bars and costs begin at zero; where accuracy does not, its axis says from where to where."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_eff.eval.figure import blank_figure, png_of
from vlm_eff.eval.stats.comparison import Compared, Group, Row
from vlm_eff.eval.stats.interval import Interval

COST_AXES = {
    "n_eq": "visual tokens averaged over layers (n_eq)",
    "flops_ratio": "FLOPs of the decoder, with the plugin / bare",
    "kv_bytes_ratio": "bytes of the KV cache, with the plugin / bare",
    "time": "time to the first token, with the plugin / bare",
}
# bars of more parts than this cannot be told apart
MOST_PARTS = 12
_BARE, _GREY = "black", "0.55"
# characters of a line beside a plot: a long one would leave no room to draw in
_WRAP = 36


@dataclass(frozen=True)
class Plot:
    """A PNG and what has to be said of it."""

    title: str
    caption: str
    png: bytes


def pareto_plots(compared: Compared, times: Mapping[str, Interval]) -> list[Plot]:
    """Accuracy against every cost that two runs or more have.

    times: ratio of the time to the first token to that of the bare model, by label of the run
    """
    made = []
    for name in COST_AXES:
        costs = {row.summary.label: _cost(row, name, times) for row in compared.rows}
        known = {label: cost for label, cost in costs.items() if cost is not None}
        if len(known) > 1:
            left_out = [label for label, cost in costs.items() if cost is None]
            made.append(_pareto(compared, name, known, left_out, times if name == "time" else {}))
    return made


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which of the points (cost, accuracy) nothing else beats at no higher cost, cheapest first.

    Of equal points the first counts.
    """
    best, kept = float("-inf"), []
    for index in sorted(range(len(points)), key=lambda one: (points[one][0], -points[one][1], one)):
        if points[index][1] > best:
            best = points[index][1]
            kept.append(index)
    return kept


def layers_plot(compared: Compared) -> Plot | None:
    """Visual tokens by decoder layer; None where no run says."""
    rows = [row for row in compared.rows if row.summary.per_layer]
    if not rows:
        return None
    figure = blank_figure(9, 4)
    axes = figure.subplots()
    for row, style in zip(compared.rows, styles([row.summary.kind for row in compared.rows]), strict=True):
        counts = row.summary.per_layer
        if counts:
            axes.plot(range(len(counts)), counts, drawstyle="steps-mid", label=plain(row.summary.label), **style.line)
    axes.set(xlabel="decoder layer", ylabel="visual tokens at its input, mean over items")
    axes.set_ylim(bottom=0)
    _finish(figure, axes)
    return Plot("Visual tokens by layer", "Mean over items; the axis of tokens begins at zero.", png_of(figure))


def group_plot(compared: Compared, name: str, groups: Sequence[Group]) -> Plot:
    """Accuracy of every run in the largest parts of a breakdown, as bars with intervals."""
    shown = sorted(groups, key=lambda group: (-group.items, group.name))[:MOST_PARTS]
    rows, width = compared.rows, 0.8 / len(compared.rows)
    figure = blank_figure(max(7.0, 1.2 + 0.22 * len(shown) * (len(rows) + 1)), 4)
    axes = figure.subplots()
    for index, (row, style) in enumerate(zip(rows, styles([row.summary.kind for row in rows]), strict=True)):
        places = [place + (index - (len(rows) - 1) / 2) * width for place in range(len(shown))]
        cells = [group.cells[index].accuracy for group in shown]
        heights = [100 * cell.value for cell in cells]
        axes.bar(places, heights, width, label=plain(row.summary.label), **style.bar)
        below, above = zip(*(_arms(cell) for cell in cells), strict=True)
        axes.errorbar(places, heights, yerr=[below, above], fmt="none", ecolor="0.3", elinewidth=0.8)
    labels = [plain(f"{group.name[:24]}\nN={group.items}") for group in shown]
    axes.set_xticks(range(len(shown)), labels, fontsize=7, rotation=30 if len(shown) > 5 else 0)
    axes.set(ylabel="accuracy, %", ylim=(0, 100))
    _finish(figure, axes)
    left = len(groups) - len(shown)
    caption = "Bars from 0 to 100 %, with 95 % intervals." + (f" {left} smaller parts are left out." if left else "")
    return Plot(f"Accuracy by {name}", caption, png_of(figure))


def plain(text: str) -> str:
    """Text as it is, in short lines: a dollar sign begins no formula, an underscore at the start hides no legend."""
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, _WRAP)]
    shown = "\n".join(lines).replace("$", r"\$")
    return f"\u200b{shown}" if shown.startswith("_") else shown


@dataclass(frozen=True)
class Style:
    """How a run is drawn: as a point, a line, a bar."""

    point: dict[str, Any]
    line: dict[str, Any]
    bar: dict[str, Any]


def styles(kinds: Sequence[str]) -> list[Style]:
    """A style a run, by its kind: "bare" black, a "baseline" grey and hollow, everything else in colour."""
    made = []
    methods = baselines = 0
    for kind in kinds:
        if kind == "bare":
            point = {"color": _BARE, "marker": "s"}
            made.append(Style(point, {"color": _BARE}, {"color": "0.2"}))
        elif kind == "baseline":
            shape, dash = "Dv^<>PX"[baselines % 7], ("--", ":", "-.")[baselines % 3]
            point = {"color": _GREY, "marker": shape, "markerfacecolor": "white"}
            bar = {"facecolor": "white", "edgecolor": _GREY, "hatch": ("///", "...", "xxx")[baselines % 3]}
            made.append(Style(point, {"color": _GREY, "linestyle": dash}, bar))
            baselines += 1
        else:
            colour, shape = f"C{methods % 10}", "op*h8"[methods // 10 % 5]
            made.append(Style({"color": colour, "marker": shape}, {"color": colour}, {"color": colour}))
            methods += 1
    return made


def _pareto(
    compared: Compared,
    name: str,
    known: Mapping[str, float],
    left_out: Sequence[str],
    spread: Mapping[str, Interval],
) -> Plot:
    figure = blank_figure(9, 4.5)
    axes = figure.subplots()
    for row, style in zip(compared.rows, styles([row.summary.kind for row in compared.rows]), strict=True):
        label, accuracy = row.summary.label, row.summary.accuracy
        if label not in known:
            continue
        below, above = _arms(accuracy)
        sideways = spread.get(label)
        arms = None if sideways is None else [[arm / 100] for arm in _arms(sideways)]
        axes.errorbar([known[label]], [100 * accuracy.value], yerr=[[below], [above]], xerr=arms, linestyle="none",
                      label=plain(label), capsize=2, elinewidth=0.8, clip_on=False, **style.point)  # fmt: skip
    real = [row.summary for row in compared.rows if row.summary.kind != "baseline" and row.summary.label in known]
    points = [(known[one.label], 100 * one.accuracy.value) for one in real]
    best = [points[index] for index in front(points)]
    axes.plot(*zip(*best, strict=True), drawstyle="steps-post", color="0.4", linewidth=0.8, zorder=0, label="front")
    low, high = _accuracy_limits([row.summary.accuracy for row in compared.rows if row.summary.label in known])
    axes.set(xlabel=COST_AXES[name], ylabel=f"accuracy, % (axis from {low:g} to {high:g})", ylim=(low, high))
    axes.set_xlim(0, 1.05 * max(known.values()) or 1)
    _finish(figure, axes)
    caption = (
        f"The accuracy axis runs from {low:g} to {high:g} %, the cost axis from zero. Arms: 95 % intervals. Hollow and "
        "grey: baselines; the front is drawn over everything else."
    )
    if left_out:
        caption += f" Not known of: {', '.join(left_out)}."
    return Plot(f"Accuracy against {COST_AXES[name]}", caption, png_of(figure))


def _cost(row: Row, name: str, times: Mapping[str, Interval]) -> float | None:
    if name != "time":
        return row.summary.costs[name]
    if row.summary.kind == "bare":
        return 1.0 if times else None
    found = times.get(row.summary.label)
    return None if found is None else found.value


def _accuracy_limits(accuracies: Sequence[Interval]) -> tuple[float, float]:
    """Whole tens around everything that is drawn."""
    low = min(one.value if one.low is None else one.low for one in accuracies)
    high = max(one.value if one.high is None else one.high for one in accuracies)
    bottom, top = max(0, 10 * int(10 * low)), min(100, 10 * (int(10 * high) + 1))
    return float(bottom), float(top)


def _arms(found: Interval) -> tuple[float, float]:
    """How far an interval reaches below and above its value, per cent."""
    low = found.value if found.low is None else found.low
    high = found.value if found.high is None else found.high
    return max(0.0, 100 * (found.value - low)), max(0.0, 100 * (high - found.value))


def _finish(figure: Any, axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", fontsize=7)
