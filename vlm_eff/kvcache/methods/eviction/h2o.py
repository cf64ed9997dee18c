"""H2O: heavy hitters and the newest."""

from __future__ import annotations

from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.kvcache.policy import CachePolicy, budget_of
from vlm_eff.kvcache.protect import Protect
from vlm_eff.kvcache.scores import Accumulated, Normalise


@method(room="kvcache", acts="between forward passes", paper="arXiv:2306.14048")
def h2o(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    keep_bytes: int | None = None,
    recent_share: float = 0.5,
    normalise: Normalise = "none",
    every: int = 1,
) -> Plugin:
    """Keep the entries that all queries together looked at most, and the newest, and go on choosing while decoding.

    Score    attention received from every query so far, prompt and answer, added up over them and over the query heads
             of a group
    Budget   the same for every layer and head, half of it for the newest     Treat  evict
    When     after each prompt, then each time that `every` entries more than the budget are stored
    Paper    H2O, arXiv:2306.14048, section 4
    Differs  nothing is summed over the batch, and evicted entries are gone, where the official code adds up all rows of
             a batch and only masks. A ratio is one of all tokens seen, so the budget grows with a long answer;
             `keep_count` holds it
    Cost     attention of all rows a second time, in chunks; a copy of the kept entries each time
    Saves    KV cache and attention of decode steps; realised

    Args:
        keep_ratio: fraction of the tokens seen that stays, in (0, 1], rounded up; default 0.2 as in the official code
        keep_count: entries a layer and key head instead
        keep_bytes: bytes of one row's keys and values instead
        recent_share: fraction of the budget for the newest tokens, rounded up; code 0.5
        normalise: early entries are looked at by more queries. "none" is the paper, "visible" divides by the queries
            that could look, "length" also weighs each query by the entries that it shares itself out over
        every: while decoding, evict each time that so many entries more than the budget are stored; code 1

    Raises:
        ConfigError: no budget or two, a ratio outside (0, 1], counts that are no whole numbers, another normalisation.
    """
    budget = budget_of(keep_ratio, keep_count, keep_bytes, 0.2)
    protect = Protect(recent=1, share=recent_share)
    return CachePolicy("h2o", Accumulated(normalise), budget, protect=protect, when="steps", every=every)
