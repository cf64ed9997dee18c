"""Methods that look at nothing, beside which every other one has to show what its looking is good for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_eff.eval.runs.folder import Header
    from vlm_eff.eval.stats.interval import Interval

# tokens picked without looking at what they hold
BLIND = ("random_drop", "uniform_grid", "average_pool")
BASELINES = (*BLIND, "random_evict")
# the picture made smaller before anybody looks: a baseline without a plugin
DOWNSIZE = "downsize"
# realised counts differ by a rounding between methods set to one budget
_SLACK = 1.05
# fewer tokens than this part of them is dropping
_DROPS = 0.98


Costs = Mapping[str, float | None]


@dataclass(frozen=True)
class Bar:
    """A method beside the best baseline that spends no more.

    baseline: its label, None where no baseline spends as little; accuracy: the baseline's
    margin:   accuracy of the method minus that of the baseline, over the same items
    """

    method: str
    accuracy: float
    baseline: str | None
    bar: float | None
    margin: Interval | None


def is_bare(header: Header) -> bool:
    """True for the model as it is, shown the pictures as they are."""
    return not header.plugins and not header.settings.get("baseline")


def is_downsized(header: Header) -> bool:
    """True for the baseline that shows smaller pictures to the bare model."""
    return bool(header.settings.get("baseline") == DOWNSIZE)


def is_baseline(header: Header) -> bool:
    """True where nothing of the picture's content, question or attention decides what is left out."""
    if header.settings.get("baseline"):
        return True
    return bool(header.plugins) and all(plugin.get("method") in BASELINES for plugin in header.plugins)


def spends_no_more(baseline: Costs, method: Costs) -> bool:
    """True where a baseline needs no more than a method of what the method saves.

    A method that drops tokens is held against n_eq, and against the bytes of the cache where they are known of both
    (of smaller pictures they may not be); one that keeps all tokens against the bytes of the cache and the FLOPs, which
    have to be known. `costs` of `Summary`: tokens are counts, the others are with the plugin / bare.
    """
    tokens, visual = method.get("n_eq"), method.get("visual_tokens")
    drops = tokens is not None and visual is not None and tokens < visual * _DROPS
    cache = _within(baseline, method, "kv_bytes_ratio")
    if drops:
        return _within(baseline, method, "n_eq") is True and cache is not False
    return cache is True and _within(baseline, method, "flops_ratio") is True


def _within(baseline: Costs, method: Costs, name: str) -> bool | None:
    less, more = baseline.get(name), method.get(name)
    return None if less is None or more is None else less <= more * _SLACK


def beaten_text(bars: Sequence[Bar]) -> str:
    """Say which methods do worse than the best baseline that spends no more."""
    said = []
    for baseline in dict.fromkeys(bar.baseline for bar in bars if bar.baseline is not None):
        held = [bar for bar in bars if bar.baseline == baseline]
        losers = [f"{bar.method} ({_points(bar.margin)})" for bar in held if bar.margin and bar.margin.value < 0]
        others = [bar.method for bar in held if bar.margin and bar.margin.value >= 0]
        text = f"Below {baseline} ({100 * (held[0].bar or 0):.1f}), the best baseline that spends no more: "
        text += ", ".join(losers) or "none"
        said.append(text + (f"; not below: {', '.join(others)}." if others else "."))
    alone = [bar.method for bar in bars if bar.baseline is None]
    if alone:
        said.append(f"No baseline among the runs spends as little as {', '.join(alone)}: what they are worth is open.")
    return " ".join(said)


def _points(margin: Interval) -> str:
    text = f"{100 * margin.value:+.1f}"
    if margin.low is None or margin.high is None:
        return text
    return f"{text} [{100 * margin.low:+.1f}, {100 * margin.high:+.1f}]"
