"""What a question cost bare and with plugins, in the pairs and rows that charts take."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_eff.core.report import Stats
from vlm_eff.demo.work.charts import Pair


def cost_pairs(stats: Stats) -> list[Pair]:
    """n_eq, FLOPs of the decoder's prefill, and bytes of the cache.

    Bytes are those behind the answer where plugins compress the cache, else those behind the prompt.
    """
    report = stats.last
    assert report is not None  # something visual was asked about
    held = (stats.kv_bytes_bare, stats.kv_bytes) if stats.compressions else (report.kv_bytes_bare, report.kv_bytes)
    return [
        Pair("n_eq", "visual tokens", report.visual_tokens, report.n_eq),
        Pair("prefill FLOPs", "of the decoder", report.flops_bare, report.flops),
        Pair("KV cache", "bytes", *held),
    ]


def layer_rows(stats: Stats) -> list[tuple[str, Sequence[float], Sequence[float]]]:
    """Visual tokens and cache entries of every decoder layer, bare and with plugins."""
    report = stats.last
    assert report is not None  # something visual was asked about
    layers = len(report.visual_per_layer)
    entries: Sequence[float] = report.kv_tokens
    prompt = next((one for one in reversed(stats.compressions) if one.when == "prompt"), None)
    if prompt is not None:
        after = dict(zip(prompt.layers, prompt.after, strict=True))
        entries = [after.get(layer, report.kv_tokens[layer]) for layer in range(layers)]
    return [
        ("visual tokens", [report.visual_tokens] * layers, report.visual_per_layer),
        ("cache entries", [report.kv_logical] * layers, entries),
    ]
