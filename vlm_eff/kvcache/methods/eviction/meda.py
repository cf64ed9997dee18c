"""MEDA: more entries for layers in which text and images attend to one another."""

from __future__ import annotations

from vlm_eff.core.cache import CacheRows
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.kvcache.methods.eviction.look_m import Merging, treatment
from vlm_eff.kvcache.policy import CachePolicy, budget_of
from vlm_eff.kvcache.protect import Protect
from vlm_eff.kvcache.scores import Accumulated, last_rows
from vlm_eff.kvcache.spreads import CrossEntropy, mixed


@method(room="kvcache", acts="between forward passes", paper="arXiv:2502.17599")
def meda(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    keep_bytes: int | None = None,
    recent_share: float = 0.5,
    rows: int = 64,
    temperature: float = 1.0,
    merge: Merging = "counted",
    adaptive_share: float = 1.0,
) -> Plugin:
    """Keep heavy hitters and the newest, more of them in layers whose attention between text and images is even.

    Score    attention received from all queries of the prompt
    Budget   by layer: softmax of the entropy of attention from text to images and from images to text, per query of
             each kind; a share of each layer's for its newest tokens; heads are equal
    Treat    evicted images are merged as in `look_m`     When  once after each prompt or turn
    Peak     the full cache of the prompt
    Paper    MEDA, arXiv:2502.17599, section 3
    Differs  the entropy is the paper's; the official code takes that of the whole attention. It is a mean over queries,
             of which the last `rows` and as many drawn ones are taken; the total is met exactly, where clipping loses
             it. Where one image comes first, images look at little text and the second part is nearly 0
    Cost     attention of all rows a second time, in chunks, and 2 * `rows` rows a layer
    Saves    KV cache and attention of decode steps; realised

    Args:
        keep_ratio: fraction of the tokens seen that stays, mean over layers, in (0, 1], rounded up; default 0.2
        keep_count: entries a key head instead, mean over layers
        keep_bytes: bytes of one row's keys and values instead
        recent_share: fraction of each layer's budget for its newest tokens, rounded up; code 0.5
        rows: last queries whose entropy is taken, and as many drawn from the rest of the prompt
        temperature: of the softmax over layers, above 0; paper 1
        merge: what becomes of evicted images, as in `look_m`; None evicts
        adaptive_share: fraction [0, 1] of the budget that follows the entropy, the rest is even; paper 1

    Raises:
        ConfigError: no budget or two, a ratio outside (0, 1], counts that are no whole numbers, shares outside [0, 1],
            an unknown merge.
    """
    budget = budget_of(keep_ratio, keep_count, keep_bytes, 0.2)
    count = last_rows("last", rows).count
    spread = mixed(CrossEntropy(CacheRows("last", count, random=rows), temperature), adaptive_share)
    protect = Protect(recent=1, share=recent_share)
    return CachePolicy("meda", Accumulated(steps=False), budget, spread, protect=protect, treat=treatment(merge))
