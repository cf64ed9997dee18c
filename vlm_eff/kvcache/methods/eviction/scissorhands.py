"""Scissorhands: what the recent queries read, by count."""

from __future__ import annotations

from vlm_eff.core.cache import CacheRows
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.kvcache.policy import CachePolicy, budget_of
from vlm_eff.kvcache.protect import Protect
from vlm_eff.kvcache.scores import ReadOften, last_rows


@method(room="kvcache", acts="between forward passes", paper="arXiv:2305.17118")
def scissorhands(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    keep_bytes: int | None = None,
    window: int = 400,
    recent: int = 10,
    drop: float = 0.5,
) -> Plugin:
    """Evict the entries that the recent queries most often gave less than an even share, many at once.

    Score    minus how many of the last `window` queries gave an entry less than 1 / t of their attention, t the entries
             that the head stores; a count, not a mass, so that one heavy query does not save an entry
    Budget   the same for every layer and head     Treat  evict
    When     after each prompt; then, as soon as more than the budget is stored, down to (1 - drop) of it
    Paper    Scissorhands, arXiv:2305.17118, algorithms 1 and 2
    Differs  the queries' attention is taken anew over what is stored at that moment, where the paper remembers what it
             was; later layers do not get more, for which the paper gives no formula; common ports sum attention
    Cost     `window` attention rows a layer, each time; the queries themselves are kept beside the cache
    Saves    KV cache and attention of decode steps; realised

    Args:
        keep_ratio: fraction of the tokens seen that stays at most, in (0, 1], rounded up; default 0.2
        keep_count: entries a layer and key head instead
        keep_bytes: bytes of one row's keys and values instead
        window: recent queries that are counted; paper 400
        recent: last tokens that stay, inside the budget; paper 10
        drop: while decoding, fraction of the budget that is evicted at once, in [0, 1); paper 0.5

    Raises:
        ConfigError: no budget or two, a ratio outside (0, 1], counts that are no whole numbers, a drop outside [0, 1).
    """
    budget = budget_of(keep_ratio, keep_count, keep_bytes, 0.2)
    score = ReadOften(CacheRows("last", last_rows("last", window).count, steps=True))
    return CachePolicy("scissorhands", score, budget, protect=Protect(recent=recent), when="steps", drop=drop)
