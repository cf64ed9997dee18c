"""VisPruner."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage
from vlm_eff.tokens.scores_tower import TowerScore
from vlm_eff.tokens.select_distinct import BestAndDistinct


@method(room="tokens", acts="before the language model", paper="arXiv:2412.01818v2")
def vispruner(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    important: float = 0.5,
    step: int = 8,
    block: int | None = None,
    row: Literal["auto", "cls", "received"] = "auto",
    positions: Literal["kept", "reindexed"] = "kept",
) -> TokenReducer:
    """Keep what the vision tower's class token looks at, and of the rest what is left without near copies.

    Score    attention of the class token in a block of the tower, or what a patch receives where there is none  [B, V]
    Select   the best of each image for a share of the budget; the others, ranked, are split into even and odd places
             again and again, and the evens most like an odd one go until the rest of the budget is met
    Reduce   drop                    When  once, before the language model
    Paper    VisPruner (FasterVLM's second version), arXiv:2412.01818v2; follows the released code: int(T * important),
             8 copies a round, cosine of the features before the projector
    Differs  where the projector does not work token by token likeness is that of the projected tokens. Images of more
             than 576 tokens lose proportionally more in a round. Tiles of an image compete; the code takes a fixed
             number of each. It numbers the survivors anew ("reindexed").
    Cost     one attention row; R * R / 4 * D multiply-adds a round, about R / 8 rounds for R tokens beside the best
    Saves    prefill FLOPs and KV cache of the whole decoder; realised

    Args:
        keep_ratio: fraction of the tokens of each image kept, (0, 1], rounded up. Default 2/9, the 128 of 576 tokens
            of the paper.
        keep_count: tokens kept of each image, instead of the ratio.
        important: share of them that goes by attention, [0, 1]; 1 is FasterVLM.
        step: near copies that go in one round.
        block: tower block, 0-based or negative; default the block whose output becomes the tokens.
        row: "cls", "received", or "auto" for the first where there is a class token.
        positions: "kept" or "reindexed" (official).

    Raises:
        ConfigError: a ratio outside (0, 1], a share outside [0, 1], a step below 1, or both ratio and count.
        CapabilityError: at attach, for a block the tower does not have, or row="cls" without a class token.
    """
    if keep_ratio is None and keep_count is None:
        keep_ratio = 128 / 576
    select = BestAndDistinct(important, step)
    stage = Stage(Keep(keep_ratio, keep_count), layer=0, score=TowerScore(block, row), select=select)
    return TokenReducer("vispruner", (stage,), position_mode=positions)
