"""What a handle says of one answered prompt, by the names that runs and bridges write down."""

from __future__ import annotations

from typing import Any

from vlm_eff.core.report import PrefillReport, Stats


def prompt_costs(stats: Stats, report: PrefillReport | None = None) -> dict[str, Any]:
    """Costs of a prompt, means over its rows; empty where nothing visual was seen.

    report: the prompt; None is the newest one. `kv_bytes` is of one row: behind the prompt, or at the end of the answer
            where plugins of the cache act, which they do behind the prompt. Ratios are with the plugins / bare.
    """
    report = report or stats.last
    if report is None:
        return {}
    stored, full = stats.kv_bytes, stats.kv_bytes_bare
    if not full:
        stored, full = report.kv_bytes, report.kv_bytes_bare
    return {
        "visual_tokens": report.visual_tokens,
        "kept_tokens": report.visual_per_layer[-1],
        "n_eq": report.n_eq,
        "n_eq_asked": report.n_eq_asked,
        "flops_ratio": report.flops / report.flops_bare,
        "kv_bytes": stored / report.rows,
        "kv_bytes_ratio": stored / full if full else 1.0,
        "visual_per_layer": list(report.visual_per_layer),
    }
