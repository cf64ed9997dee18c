"""DivPrune."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens.diverse import MaxMin
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage
from vlm_eff.tokens.scores import Even


@method(room="tokens", acts="before or between decoder layers", paper="arXiv:2503.02175")
def divprune(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    layer: int = 0,
    positions: Literal["kept", "reindexed"] = "kept",
) -> TokenReducer:
    """Keep the visual tokens that lie farthest apart from one another; neither question nor attention is looked at.

    Score    none: distance is 1 - cosine of the projected features, which are the hidden states at layer 0  [B, V]
    Select   first the token whose nearest neighbour is farthest, then always the one farthest from the chosen ones
    Reduce   drop                    When  once, at the input of `layer` (0: before the language model)
    Paper    DivPrune, arXiv:2503.02175; follows the released code: round(N * keep_ratio) tokens
    Differs  the code can choose a token twice when all that are left are copies of chosen ones, takes the first image
             of the first row at a hard-coded place, and numbers the survivors anew ("reindexed"); here a token leaves
             the race when chosen, every row chooses among all its images at once, and "kept" is the default.
    Cost     V * V * D multiply-adds once, then V a kept token; all rows of a batch in one step
    Saves    prefill FLOPs and KV cache from `layer` on; realised

    Args:
        keep_ratio: fraction of the visual tokens kept, (0, 1], rounded to the nearest as in the code. Default 0.098.
        keep_count: tokens kept of each sample, instead of the ratio.
        layer: decoder layer at whose input tokens are dropped; official 0.
        positions: "kept" or "reindexed" (official).

    Raises:
        ConfigError: a ratio outside (0, 1], a negative layer, or both ratio and count.
    """
    if keep_ratio is None and keep_count is None:
        keep_ratio = 0.098
    keep = Keep(ratio=keep_ratio, count=keep_count, rounding="nearest")
    stage = Stage(keep, layer=layer, score=Even(), select=MaxMin())
    return TokenReducer("divprune", (stage,), position_mode=positions)
