"""Charts of the page: bars that start at zero, bare in grey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_eff.eval.figure import blank_figure

BARE_COLOUR = "#9aa0a6"
COLOUR = "#0b6e99"
TEXT_COLOUR = "#d08700"
_WIDTH = 8.4


@dataclass(frozen=True)
class Pair:
    """One quantity, bare and with the plugin; `note` is written under its name, such as an interval."""

    name: str
    unit: str
    bare: float
    arm: float
    note: str = ""


def pair_bars(pairs: Sequence[Pair], label: str) -> Any:
    """A panel a quantity, each with its own axis from zero: bare, and with the plugin."""
    figure = blank_figure(_WIDTH, 2.4)
    for place, (pair, axes) in enumerate(zip(pairs, figure.subplots(1, len(pairs), squeeze=False)[0], strict=True)):
        drawn = axes.bar((0, 1), (pair.bare, pair.arm), color=(BARE_COLOUR, COLOUR), width=0.7)
        axes.bar_label(drawn, labels=[_short(pair.bare), _short(pair.arm)], fontsize=8, padding=2)
        axes.set_ylim(0, 1.2 * max(pair.bare, pair.arm, 1e-12))
        axes.set_title(f"{pair.name}\n{pair.note or ratio_text(pair)}", fontsize=8)
        axes.set_ylabel(pair.unit, fontsize=8)
        axes.set_xticks((0, 1), ("bare", "plugin"), fontsize=8)
        _plain(axes)
        if place == 0:
            axes.figure.suptitle(label, fontsize=9)
    return figure


def layer_bars(
    rows: Sequence[tuple[str, Sequence[float], Sequence[float]]], layers: Sequence[int] | None = None
) -> Any:
    """A panel a quantity, a bar a decoder layer, the plugin drawn in front.

    rows: (what, bare, with the plugin); layers: numbers of the layers, where they are not all from 0 on
    """
    figure = blank_figure(_WIDTH, 1.9 * len(rows))
    for (what, bare, arm), axes in zip(rows, figure.subplots(len(rows), 1, squeeze=False)[:, 0], strict=True):
        places = layers or range(len(bare))
        axes.bar(places, bare, color=BARE_COLOUR, width=0.85, label="bare")
        axes.bar(places, arm, color=COLOUR, width=0.55, label="with the plugin")
        axes.set_ylim(0, 1.3 * max(*bare, *arm, 1e-12))
        axes.set_ylabel(what, fontsize=8)
        axes.set_xlim(places[0] - 0.6, places[-1] + 0.6)
        _plain(axes)
    axes.set_xlabel("decoder layer", fontsize=8)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside upper right", ncols=2
    )
    return figure


def ratio_text(pair: Pair) -> str:
    """What the plugin leaves of the bare quantity."""
    return f"x {pair.arm / pair.bare:.2f}" if pair.bare else ""


def _short(value: float) -> str:
    for limit, scale, sign in ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= limit:
            return f"{value / scale:.3g}{sign}"
    if value >= 1e3:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _short_ticks(value: float, place: int) -> str:
    return _short(value)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.yaxis.set_major_formatter(_short_ticks)
