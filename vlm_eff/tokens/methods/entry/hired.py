"""HiRED."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage
from vlm_eff.tokens.scores_tower import TowerScore
from vlm_eff.tokens.select_tiles import TileBudgets


@method(room="tokens", acts="before the language model", paper="arXiv:2408.10945")
def hired(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    overview: float = 0.5,
    allocation_block: int = 0,
    block: int | None = None,
    faithful: bool = False,
    positions: Literal["kept", "reindexed"] = "kept",
) -> TokenReducer:
    """Share one budget out over the tiles of an image by early attention, and keep each tile's best by late attention.

    Score    attention of the class token in a late block, or what a patch receives where there is none  [B, V]
    Select   a fixed share for the overview; for the tiles by how much of the overview's early attention falls into the
             region that each one shows; then top-k of every tile
    Reduce   drop                    When  once, before the language model
    Paper    HiRED, arXiv:2408.10945, section 4; follows the released code but for `faithful`
    Differs  the code cuts the overview's map into bands of the raster instead of regions, and loses what rounding and
             full tiles leave over: `faithful=True` does so too. It drops the newlines and chooses patches that are
             padding; here newlines stay and padding was never there. Joined maps (LLaVA-NeXT, LLaVA-OneVision) are cut
             where their tiles were joined. InternVL does not tell how its tiles lie: they get equal shares. Idefics3
             and SmolVLM: every tile counts as an image, so each keeps its own top-k, as every image without tiles does.
    Cost     one attention row of two tower blocks, shares on the host     Saves  prefill FLOPs and KV cache; realised

    Args:
        keep_ratio: fraction of the tokens of each image kept, (0, 1], rounded down. Default 0.2.
        keep_count: tokens kept of each image, instead of the ratio.
        overview: share of them for the overview, alpha of the paper.
        allocation_block: tower block whose attention shares the budget out, 0-based or negative.
        block: tower block that ranks the tokens; default the block whose output becomes the tokens.
        faithful: bands and floors of the released code.
        positions: "kept" or "reindexed" (official).

    Raises:
        ConfigError: a ratio outside (0, 1], a share outside [0, 1], or both ratio and count.
        CapabilityError: at attach, for a block that the tower does not have.
    """
    if keep_ratio is None and keep_count is None:
        keep_ratio = 0.2
    keep, select = Keep(keep_ratio, keep_count, rounding="down"), TileBudgets(overview, allocation_block, faithful)
    stage = Stage(keep, layer=0, score=TowerScore(block), select=select)
    return TokenReducer("hired", (stage,), position_mode=positions)
