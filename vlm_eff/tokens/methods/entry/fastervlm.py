"""FasterVLM."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage
from vlm_eff.tokens.scores_tower import TowerScore
from vlm_eff.tokens.select import TopK


@method(room="tokens", acts="before the language model", paper="arXiv:2412.01818")
def fastervlm(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    block: int | None = None,
    row: Literal["auto", "cls", "received"] = "auto",
    positions: Literal["kept", "reindexed"] = "kept",
) -> TokenReducer:
    """Keep the visual tokens that the vision tower's class token looks at most.

    Score    attention of the class token in a block of the tower, mean over heads and over the patches of a token; in
             towers without a class token what a patch receives from all others on average  [B, V]
    Select   top-k of each image     Reduce  drop     When  once, before the language model
    Paper    FasterVLM, arXiv:2412.01818; follows the released code: the block whose output is projected, image order
    Differs  the code runs LLaVA-1.5 alone, and LLaVA-NeXT tile by tile with a fixed number of tokens each; here the
             tiles of an image compete (each one's attention sums to one). It numbers survivors anew ("reindexed").
    Cost     one attention row of one tower block, or column sums of it in chunks; never N x N
    Saves    prefill FLOPs and KV cache of the whole decoder; realised

    Args:
        keep_ratio: fraction of the tokens of each image kept, (0, 1], rounded up. Default 2/9, the 128 of 576 tokens
            of the paper.
        keep_count: tokens kept of each image, instead of the ratio.
        block: tower block, 0-based or negative; default the block whose output becomes the tokens.
        row: "cls", "received", or "auto" for the first where there is a class token.
        positions: "kept" or "reindexed" (official).

    Raises:
        ConfigError: a ratio outside (0, 1], or both ratio and count.
        CapabilityError: at attach, for a block the tower does not have, or row="cls" without a class token.
    """
    if keep_ratio is None and keep_count is None:
        keep_ratio = 128 / 576
    stage = Stage(Keep(keep_ratio, keep_count), layer=0, score=TowerScore(block, row), select=TopK(per="image"))
    return TokenReducer("fastervlm", (stage,), position_mode=positions)
