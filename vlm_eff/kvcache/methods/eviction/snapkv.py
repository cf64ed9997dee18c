"""SnapKV: what the last rows of the prompt look at."""

from __future__ import annotations

from vlm_eff.core.cache import CacheRows
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.kvcache.policy import CachePolicy, budget_of
from vlm_eff.kvcache.protect import Protect
from vlm_eff.kvcache.scores import WindowMass


@method(room="kvcache", acts="between forward passes", paper="arXiv:2404.14469")
def snapkv(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    keep_bytes: int | None = None,
    window: int = 32,
) -> Plugin:
    """Keep the entries that the last rows of the prompt look at most, and the last tokens themselves.

    Score    attention of the last `window` text tokens, summed over rows and the query heads of a group
    Budget   the same for every layer and head     Treat  evict     When  once after each prompt or turn
    Paper    SnapKV, arXiv:2404.14469, section 4
    Cost     `window` attention rows a layer       Saves  KV cache and attention of decode steps; realised

    Args:
        keep_ratio: fraction of the tokens seen that stays, (0, 1], rounded up; default 0.2.
        keep_count: entries a layer and key head instead.
        keep_bytes: bytes of one row's keys and values instead.
        window: rows that look; as many of the last tokens stay, inside the budget.

    Raises:
        ConfigError: no budget or two, a ratio outside (0, 1], counts that are no whole numbers.
    """
    budget = budget_of(keep_ratio, keep_count, keep_bytes, 0.2)
    return CachePolicy("snapkv", WindowMass(CacheRows("text", window)), budget, protect=Protect(recent=window))
