"""StreamingLLM: the first tokens and the last ones."""

from __future__ import annotations

from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.kvcache.policy import CachePolicy, budget_of
from vlm_eff.kvcache.protect import Protect
from vlm_eff.kvcache.scores import Recency


@method(room="kvcache", acts="between forward passes", paper="arXiv:2309.17453")
def streaming_llm(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    keep_bytes: int | None = None,
    sinks: int = 4,
    every: int = 1,
) -> Plugin:
    """Keep the attention sinks at the start and a window of the newest tokens, and go on sliding while decoding.

    Score    recency
    Budget   the same for every layer and head     Treat  evict     When  after each prompt, then every `every` steps
    Paper    StreamingLLM, arXiv:2309.17453, section 3
    Differs  entries keep the rotary positions they had; the official code rotates them anew by their place in the
             cache, which positions of several axes do not allow
    Cost     a copy of the kept entries each time  Saves  KV cache and attention of decode steps; realised

    Args:
        keep_ratio: fraction of the tokens seen that stays, in (0, 1], rounded up; default 0.2
        keep_count: entries a layer and key head instead
        keep_bytes: bytes of one row's keys and values instead
        sinks: first tokens that stay, inside the budget; paper and code 4
        every: while decoding, evict each time that so many entries more than the budget are stored; code 1

    Raises:
        ConfigError: no budget or two, a ratio outside (0, 1], counts that are no whole numbers.
    """
    budget = budget_of(keep_ratio, keep_count, keep_bytes, 0.2)
    return CachePolicy(
        "streaming_llm", Recency(), budget, protect=Protect(sinks, recent=1), per_head=False, when="steps", every=every
    )
