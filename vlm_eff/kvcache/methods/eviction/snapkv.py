"""SnapKV: what the last rows of the prompt look at."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.kvcache.policy import CachePolicy, budget_of
from vlm_eff.kvcache.protect import Protect
from vlm_eff.kvcache.scores import WindowMass, last_rows


@method(room="kvcache", acts="between forward passes", paper="arXiv:2404.14469")
def snapkv(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    keep_bytes: int | None = None,
    window: int = 32,
    rows: Literal["text", "last"] = "text",
    kernel: int = 5,
    pool: Literal["avg", "max"] = "avg",
) -> Plugin:
    """Keep the entries that the last rows of the prompt look at most, and the last tokens themselves.

    Score    attention of the last `window` text tokens, summed over rows and the query heads of a group, then pooled
             over `kernel` neighbours, so that an entry stays with what is around it
    Budget   the same for every layer and head     Treat  evict     When  once after each prompt or turn
    Paper    SnapKV, arXiv:2404.14469, section 4; pooling as in the official code, whose mean counts the zeros beyond
             both ends (the paper takes the maximum)
    Differs  the rows that look are the last text tokens: behind an image the last tokens may be patches; rows="last" is
             the official choice. Entries are stored once a key head, where the official code stores one copy for each
             query head
    Cost     `window` attention rows a layer       Saves  KV cache and attention of decode steps; realised

    Args:
        keep_ratio: fraction of the tokens seen that stays, in (0, 1], rounded up; default 0.2.
        keep_count: entries a layer and key head instead.
        keep_bytes: bytes of one row's keys and values instead.
        window: rows that look; as many of the last tokens stay, inside the budget, and are not pooled.
        rows: "text" the last text tokens look, "last" the last tokens whatever they are.
        kernel: neighbours that are pooled, odd; 1 for none; paper and code 5.
        pool: "avg" or "max" of the neighbours.

    Raises:
        ConfigError: no budget or two, a ratio outside (0, 1], counts that are no whole numbers, an even kernel, rows or
            pool of another name.
    """
    budget = budget_of(keep_ratio, keep_count, keep_bytes, 0.2)
    score = WindowMass(last_rows(rows, window), kernel, pool, window)
    return CachePolicy("snapkv", score, budget, protect=Protect(recent=window))
