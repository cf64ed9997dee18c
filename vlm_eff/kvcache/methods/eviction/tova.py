"""TOVA: what the newest query looks at."""

from __future__ import annotations

from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.kvcache.policy import CachePolicy, budget_of
from vlm_eff.kvcache.protect import Protect
from vlm_eff.kvcache.scores import LastRow


@method(room="kvcache", acts="between forward passes", paper="arXiv:2401.06104")
def tova(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    keep_bytes: int | None = None,
    every: int = 1,
) -> Plugin:
    """Keep the entries that the newest query looks at most, chosen anew at every step of the answer.

    Score    attention of the last query, mean over all heads, so that all heads of a layer keep the same
    Budget   the same for every layer     Treat  evict     When  after each prompt, then every `every` steps
    Paper    TOVA, arXiv:2401.06104, section 3
    Differs  the newest token stays whatever it scores; a ratio is one of all tokens seen, so the budget grows with a
             long answer; `keep_count` holds it
    Cost     one attention row a layer; a copy of the kept entries each time
    Saves    KV cache and attention of decode steps; realised

    Args:
        keep_ratio: fraction of the tokens seen that stays, in (0, 1], rounded up; default 0.2
        keep_count: entries a layer and key head instead
        keep_bytes: bytes of one row's keys and values instead
        every: while decoding, evict each time that so many entries more than the budget are stored; paper 1

    Raises:
        ConfigError: no budget or two, a ratio outside (0, 1], counts that are no whole numbers.
    """
    budget = budget_of(keep_ratio, keep_count, keep_bytes, 0.2)
    return CachePolicy("tova", LastRow(), budget, protect=Protect(recent=1), when="steps", every=every)
