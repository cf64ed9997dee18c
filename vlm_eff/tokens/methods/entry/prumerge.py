"""LLaVA-PruMerge and PruMerge+."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep
from vlm_eff.importance.rules import Outliers
from vlm_eff.tokens.reduce.nearest import NeighbourMerge
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage
from vlm_eff.tokens.scores_tower import TowerScore
from vlm_eff.tokens.select_outstanding import OutstandingTokens

Positions = Literal["kept", "reindexed"]
Row = Literal["auto", "cls", "received"]


@method(room="tokens", acts="before the language model", paper="arXiv:2403.15388")
def prumerge(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    factor: float = 1.5,
    neighbours: int = 32,
    block: int | None = -1,
    row: Row = "auto",
    positions: Positions = "kept",
) -> TokenReducer:
    """Keep the tokens whose class-token attention stands out, each with its neighbours merged in.

    Score    attention of the class token in the last block, all heads taken as one; what a patch receives where there
             is no class token  [B, V]
    Select   the scores above Q3 + `factor` * (Q3 - Q1) of the image, so busy images keep more; at least one
    Reduce   a kept token takes in its `neighbours` nearest ones (cosine of tower keys) weighted by their attention; one
             more token is the weighted sum of all that is dropped. Before a projector that works token by token
    When     once, before the language model
    Paper    LLaVA-PruMerge, arXiv:2403.15388, section 3; follows the released code: weights are not normalised
    Differs  the code takes quartiles over the flattened batch; here every image has its own, whatever stands beside it.
             Tokens keep their order; the code orders them by attention and puts the sum last: here it stands at the
             last dropped place. It works on LLaVA-1.5 alone; tiles of an image share one set of quartiles here.
    Cost     one attention row and the keys of one tower block, K * V * C multiply-adds for K kept of V tokens
    Saves    prefill FLOPs and KV cache of the whole decoder; realised. The number of tokens follows the image.

    Args:
        keep_ratio: a fixed fraction of the tokens of each image instead of those that stand out, (0, 1], the sum
            included; rounded up.
        keep_count: a fixed number of tokens of each image, the sum included.
        factor: how far above the quartiles a score must be, in distances between them.
        neighbours: tokens that each kept one takes in.
        block: tower block, 0-based or negative; the released code takes the last one.
        row: "cls", "received", or "auto" for the first where there is a class token.
        positions: "kept" or "reindexed" (official).

    Raises:
        ConfigError: a ratio outside (0, 1], negative neighbours, or both ratio and count.
        CapabilityError: at attach, for a block the tower does not have, or row="cls" without a class token.
    """
    keep = _budget(keep_ratio, keep_count, factor)
    return _reducer("prumerge", keep, OutstandingTokens(), neighbours, block, row, positions)


@method(room="tokens", acts="before the language model", paper="arXiv:2403.15388")
def prumerge_plus(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    factor: float = 1.5,
    neighbours: int = 32,
    block: int | None = -1,
    row: Row = "auto",
    faithful: bool = False,
    positions: Positions = "kept",
) -> TokenReducer:
    """Keep the tokens that stand out and others spread over the image, each with its neighbours merged in.

    Score    as `prumerge`  [B, V]
    Select   as `prumerge`, and besides an even grid that is about three times as dense as what stands out
    Reduce   as `prumerge`           When  once, before the language model
    Paper    LLaVA-PruMerge+, arXiv:2403.15388, section 3.3; follows the released code but for `faithful`
    Differs  the code spreads along the raster with a stride of floor(N / k) // 3, which makes stripes, and fails where
             more than a third stands out: `faithful=True` takes its stripes, and all tokens in that case. The default
             takes rows and columns at the root of that stride, in every tile. Else as `prumerge`.
    Cost     as `prumerge`           Saves  prefill FLOPs and KV cache of the whole decoder; realised

    Args:
        keep_ratio: a fixed fraction of the tokens of each image, (0, 1], the sum included, rounded up: a quarter by
            score, the rest spread evenly.
        keep_count: a fixed number of tokens of each image, the sum included.
        factor: how far above the quartiles a score must be, in distances between them.
        neighbours: tokens that each kept one takes in.
        block: tower block, 0-based or negative; the released code takes the last one.
        row: "cls", "received", or "auto" for the first where there is a class token.
        faithful: stripes along the raster instead of a grid, where the number follows the image.
        positions: "kept" or "reindexed" (official).

    Raises:
        ConfigError: a ratio outside (0, 1], negative neighbours, or both ratio and count.
        CapabilityError: at attach, for a block the tower does not have, or row="cls" without a class token.
    """
    keep, select = _budget(keep_ratio, keep_count, factor), OutstandingTokens("line" if faithful else "grid")
    return _reducer("prumerge_plus", keep, select, neighbours, block, row, positions)


def _budget(ratio: float | None, count: int | None, factor: float) -> Keep:
    return Keep(rule=Outliers(factor)) if ratio is None and count is None else Keep(ratio, count)


def _reducer(
    name: str, keep: Keep, select: OutstandingTokens, neighbours: int, block: int | None, row: Row, positions: Positions
) -> TokenReducer:
    score = TowerScore(block, row, "joined")
    stage = Stage(keep, layer=0, score=score, select=select)
    return TokenReducer(name, (stage,), NeighbourMerge(score, neighbours), position_mode=positions)
