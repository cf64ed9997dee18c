"""VisionZip."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens.reduce.context import ContextMerge, Dominant
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage
from vlm_eff.tokens.scores_tower import TowerScore


@method(room="tokens", acts="before the language model", paper="arXiv:2412.04467")
def visionzip(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    contextual: float = 10 / 64,
    block: int | None = None,
    row: Literal["auto", "cls", "received"] = "auto",
    faithful: bool = False,
    positions: Literal["kept", "reindexed"] = "kept",
) -> TokenReducer:
    """Keep the tokens that the vision tower's class token looks at, and merge the others into a few.

    Score    attention of the class token in a block of the tower, or what a patch receives where there is none  [B, V]
    Select   dominant: top-k of each image. Contextual: of the others, in order, every n-th
    Reduce   each token that is left joins the contextual token whose tower keys (mean over heads) are most like its
             own, by cosine; features are merged before a projector that works token by token, else after it
    When     once, before the language model
    Paper    VisionZip, arXiv:2412.04467, sections 3.2 and 3.3; follows the released code but for `faithful`
    Differs  the paper averages, the code adds the mean of those that join to the contextual token, whose length it
             about doubles: `faithful=True` adds. The code also feeds the class token itself to the language model,
             which has no place in the prompt: here its seat goes to one more patch. Tiles of an image compete, and
             keep their order with the newlines; the code takes a fixed number of each tile and puts merged ones last.
    Cost     one attention row and the keys of one tower block, R * n * C multiply-adds for n contextual tokens
    Saves    prefill FLOPs and KV cache of the whole decoder; realised

    Args:
        keep_ratio: fraction of the tokens of each image kept, merged ones included, (0, 1], rounded up. Default 1/3,
            the 192 of 576 tokens of the paper.
        keep_count: tokens kept of each image, merged ones included, instead of the ratio.
        contextual: share of them that is contextual, [0, 1); 10/64 in all settings of the paper. 0 keeps the dominant
            ones alone.
        block: tower block, 0-based or negative; default the block whose output becomes the tokens.
        row: "cls", "received", or "auto" for the first where there is a class token.
        faithful: add as the released code does.
        positions: "kept" or "reindexed" (official).

    Raises:
        ConfigError: a ratio outside (0, 1], a share outside [0, 1), or both ratio and count.
        CapabilityError: at attach, for a block the tower does not have, or row="cls" without a class token.
    """
    if keep_ratio is None and keep_count is None:
        keep_ratio = 192 / 576
    select, reduce = Dominant(contextual), ContextMerge(contextual, block, faithful)
    stage = Stage(Keep(keep_ratio, keep_count), layer=0, score=TowerScore(block, row), select=select)
    return TokenReducer("visionzip", (stage,), reduce, position_mode=positions)
