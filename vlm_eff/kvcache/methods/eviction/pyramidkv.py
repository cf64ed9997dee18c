"""PyramidKV: fewer entries the deeper the layer."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.kvcache.policy import CachePolicy, budget_of
from vlm_eff.kvcache.protect import Protect
from vlm_eff.kvcache.scores import WindowMass, last_rows
from vlm_eff.kvcache.spreads import Pyramid, mixed


@method(room="kvcache", acts="between forward passes", paper="arXiv:2406.02069")
def pyramidkv(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    keep_bytes: int | None = None,
    window: int = 8,
    beta: float = 20.0,
    rows: Literal["text", "last"] = "text",
    kernel: int = 5,
    pool: Literal["avg", "max"] = "avg",
    adaptive_share: float = 1.0,
) -> Plugin:
    """Keep what the last rows of the prompt look at, many entries in the first layers and few in the last.

    Score    as in SnapKV: attention of the last `window` text tokens, pooled
    Budget   beyond the window it falls linearly from the first layer to the last; heads are equal     Treat  evict
    When     once after each prompt or turn     Peak  the full cache of the prompt
    Paper    PyramidKV, arXiv:2406.02069, section 4
    Differs  the total is met exactly: the official code rounds the fall from layer to layer down and overspends. Below
             2 * (budget - window) tokens that code keeps equal shares; here the first layers are full and the others
             fall. The last text tokens look, rows="last" is the official choice. Weak on vision-language models
             (VL-Cache, EffiVLM-Bench): adaptive_share=0.2 follows the pyramid with a fifth of the budget
    Cost     `window` attention rows a layer       Saves  KV cache and attention of decode steps; realised

    Args:
        keep_ratio: fraction of the tokens seen that stays, mean over layers, in (0, 1], rounded up; default 0.2
        keep_count: entries a key head instead, mean over layers
        keep_bytes: bytes of one row's keys and values instead
        window: rows that look; as many of the last tokens stay in every layer, inside its budget; paper 8
        beta: how many times less than the mean the last layer has beyond the window, at least 1; paper 20
        rows: "text" the last text tokens look, "last" the last tokens whatever they are
        kernel: neighbours that are pooled, odd; 1 for none
        pool: "avg" or "max" of the neighbours
        adaptive_share: fraction [0, 1] of the budget that follows the pyramid, the rest is even; paper 1

    Raises:
        ConfigError: no budget or two, a ratio outside (0, 1], counts that are no whole numbers, a beta below 1, a share
            outside [0, 1].
    """
    budget = budget_of(keep_ratio, keep_count, keep_bytes, 0.2)
    score = WindowMass(last_rows(rows, window), kernel, pool, window)
    spread = mixed(Pyramid(window, beta), adaptive_share)
    return CachePolicy("pyramidkv", score, budget, spread, protect=Protect(recent=window))
