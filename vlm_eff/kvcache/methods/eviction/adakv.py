"""AdaKV: heads that spread their attention keep more."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.kvcache.policy import CachePolicy, budget_of
from vlm_eff.kvcache.protect import Protect
from vlm_eff.kvcache.scores import WindowMass, last_rows
from vlm_eff.kvcache.spreads import BestOfHeads


@method(room="kvcache", acts="between forward passes", paper="arXiv:2407.11550")
def adakv(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    keep_bytes: int | None = None,
    window: int = 32,
    floor: float = 0.2,
    rows: Literal["text", "last"] = "text",
    kernel: int = 7,
    pool: Literal["avg", "max"] = "max",
) -> Plugin:
    """Keep the best entries of a whole layer, so that heads that spread their attention keep more than others.

    Score    as in SnapKV: attention of the last `window` text tokens, pooled by the maximum
    Budget   the same for every layer; each key head keeps as many as it has among the best of all heads, mixed with
             equal shares     Treat  evict     When  once after each prompt or turn
    Paper    AdaKV, arXiv:2407.11550, section 3, algorithm 1
    Differs  the sum over heads is met exactly, where the official code rounds each head alone; batches work; the last
             text tokens look, rows="last" is the official choice
    Cost     `window` attention rows a layer       Saves  KV cache and attention of decode steps; realised: heads are
             stored one behind the other without fillers

    Args:
        keep_ratio: fraction of the tokens seen that stays, mean over heads, in (0, 1], rounded up; default 0.2
        keep_count: entries a layer instead, mean over key heads
        keep_bytes: bytes of one row's keys and values instead
        window: rows that look; as many of the last tokens stay in every head, inside the budget; code 32
        floor: fraction [0, 1] of the budget that the heads share evenly; code 0.2
        rows: "text" the last text tokens look, "last" the last tokens whatever they are
        kernel: neighbours that are pooled, odd; 1 for none; code 7
        pool: "avg" or "max" of the neighbours

    Raises:
        ConfigError: no budget or two, a ratio outside (0, 1], counts that are no whole numbers, a floor outside [0, 1].
    """
    budget = budget_of(keep_ratio, keep_count, keep_bytes, 0.2)
    score = WindowMass(last_rows(rows, window), kernel, pool, window)
    return CachePolicy("adakv", score, budget, heads=BestOfHeads(floor), protect=Protect(recent=window))
