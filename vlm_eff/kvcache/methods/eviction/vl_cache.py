"""VL-Cache: what the words behind the image look at, more of it in layers that look at much."""

from __future__ import annotations

from vlm_eff.core.cache import CacheRows
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.kvcache.policy import CachePolicy, budget_of
from vlm_eff.kvcache.protect import Protect
from vlm_eff.kvcache.scores import WindowMass, last_rows
from vlm_eff.kvcache.spreads import Sparsity, mixed


@method(room="kvcache", acts="between forward passes", paper="arXiv:2410.23317")
def vl_cache(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    keep_bytes: int | None = None,
    recent_share: float = 0.1,
    threshold: float = 0.01,
    rows: int = 256,
    head_adaptive: bool = False,
    adaptive_share: float = 1.0,
) -> Plugin:
    """Keep what the tokens behind the last image look at, and more entries in layers whose attention is dense.

    Score    attention of the tokens behind the last image or video, summed; text and visual entries compete
    Budget   by layer: proportional to 1 - sparsity of those rows' attention, at least 1 % of the prompt; a tenth of
             each layer's for its newest tokens     Treat  evict
    When     once after each prompt or turn     Peak  the full cache of the prompt
    Paper    VL-Cache, arXiv:2410.23317, sections 4.1 and 4.2; there is no official code, and where the paper is silent
             the port in EffiVLM-Bench is followed: one set of entries for all heads of a layer
    Differs  the shares of the layers meet the total exactly, where clipping loses it. The rows are the last `rows` of
             those behind the image; behind an image at the end, the last 32 of the prompt. The sums are not taken over
             the batch
    Cost     `rows` attention rows a layer, twice     Saves  KV cache and attention of decode steps; realised

    Args:
        keep_ratio: fraction of the tokens seen that stays, mean over layers, in (0, 1], rounded up; default 0.1 as in
            the paper
        keep_count: entries a key head instead, mean over layers
        keep_bytes: bytes of one row's keys and values instead
        recent_share: fraction of each layer's budget for its newest tokens, rounded up; paper 0.1
        threshold: attention below this fraction of its row's largest counts as empty; paper 0.01
        rows: at most so many of the last tokens look; the paper measures speed with 50
        head_adaptive: True lets each key head choose its own entries
        adaptive_share: fraction [0, 1] of the budget that follows the sparsity, the rest is even; paper 1, where
            EffiVLM-Bench found 0.2 better at small budgets

    Raises:
        ConfigError: no budget or two, a ratio outside (0, 1], counts that are no whole numbers, shares or a threshold
            outside [0, 1].
    """
    budget = budget_of(keep_ratio, keep_count, keep_bytes, 0.1)
    looking = CacheRows("after", last_rows("last", rows).count)
    spread = mixed(Sparsity(looking, threshold), adaptive_share)
    protect = Protect(recent=1, share=recent_share)
    return CachePolicy("vl_cache", WindowMass(looking), budget, spread, protect=protect, per_head=head_adaptive)
