"""The records of `benchmarks/tuned.py` as one Markdown table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlm_eff.eval.record import Record

# what is reached by putting methods together by hand
_BY_HAND = " + "


def tuning_table(records: Sequence[Record]) -> str:
    """One line a budget: the preset, and within it the best single untuned method and the best pair made by hand."""
    lines = [
        "| budget | N | bare | preset | FLOPs, KV | best single untuned method | difference | best pair by hand |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(record) for record in records]
    names = ", ".join(sorted({record.device for record in records}))
    dates = ", ".join(sorted({record.date for record in records}))
    note = (
        "Right answers on held-out scenes; difference: preset minus the best single one in points, paired, 95 % "
        f"interval over scenes. Methods that exceed the budget are left out. Bundled model, {names}, {dates}."
    )
    return "\n".join([*lines, "", note])


def _line(record: Record) -> str:
    result, tuned = record.result, record.config["tuned"]
    budget = ", ".join(f"{name} {share:g}" for name, share in tuned["settings"]["budget"].items() if share is not None)
    preset, costs = result["preset"]["accuracy"], result["preset"]["costs"]
    within = [row for row in result["untuned"] if not row.get("over")]
    single = max((row for row in within if _BY_HAND not in row["label"]), key=_accuracy)
    pairs = [row for row in within if _BY_HAND in row["label"]]
    pair = max(pairs, key=_accuracy, default=None)
    ahead, low, high = (100 * value for value in single["preset_minus_this"])
    cells = [budget, str(record.n), _percent(result["bare"]), _percent(preset)]
    cells += [f"{costs['flops']:.2f}, {costs['kv']:.2f}", f"`{single['label']}` {_percent(_accuracy(single))}"]
    cells += [f"{ahead:+.1f} [{low:+.1f}, {high:+.1f}]"]
    cells += ["-" if pair is None else f"`{pair['label']}` {_percent(_accuracy(pair))}"]
    return f"| {' | '.join(cells)} |"


def _accuracy(row: dict[str, Any]) -> float:
    return float(row["accuracy"])


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
