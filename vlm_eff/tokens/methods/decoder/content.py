"""Dropping by what a token holds, without looking at attention: the survey's magnitude and neighbour redundancy."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage
from vlm_eff.tokens.scores_hidden import Distinctness, Magnitude

Positions = Literal["kept", "reindexed"]


@method(room="tokens", acts="before or between decoder layers", paper="baseline")
def magnitude_drop(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    layer: int = 0,
    norm: Literal[1, 2] = 2,
    positions: Positions = "kept",
) -> TokenReducer:
    """Keep the visual tokens with the longest hidden states.

    Score    L1 or L2 norm of the hidden state at the stage's input  [B, V]
    Select   top-k of the sample     Reduce  drop     When  once, at the input of `layer` (0: before the language model)
    Source   the magnitude score that surveys of token reduction list; no paper stands for it alone
    Cost     one norm over the visual hidden states      Saves  prefill FLOPs and KV cache from `layer` on; realised

    Args:
        keep_ratio: fraction of the visual tokens kept, (0, 1], rounded up. Default 0.5.
        keep_count: tokens kept, instead of the ratio.
        layer: decoder layer at whose input tokens are dropped.
        norm: 1 or 2.
        positions: "kept" or "reindexed".

    Raises:
        ConfigError: a ratio outside (0, 1], a negative layer, another norm, or both ratio and count.
    """
    return TokenReducer(
        "magnitude_drop",
        (Stage(_keep(keep_ratio, keep_count), layer=layer, score=Magnitude(norm)),),
        position_mode=positions,
    )


@method(room="tokens", acts="before or between decoder layers", paper="baseline")
def redundancy_drop(
    keep_ratio: float | None = None, keep_count: int | None = None, layer: int = 0, positions: Positions = "kept"
) -> TokenReducer:
    """Drop the visual tokens that are most like their neighbours in the image.

    Score    minus the mean cosine similarity to the up to four neighbours in the tile or frame that are still there
             [B, V]; a token without neighbours counts as not redundant
    Select   top-k of the sample     Reduce  drop     When  once, at the input of `layer` (0: before the language model)
    Source   the neighbour redundancy that surveys give for PyramidDrop, whose own code ranks by attention instead
    Cost     four cosines a visual token                 Saves  prefill FLOPs and KV cache from `layer` on; realised

    Args:
        keep_ratio: fraction of the visual tokens kept, (0, 1], rounded up. Default 0.5.
        keep_count: tokens kept, instead of the ratio.
        layer: decoder layer at whose input tokens are dropped.
        positions: "kept" or "reindexed".

    Raises:
        ConfigError: a ratio outside (0, 1], a negative layer, or both ratio and count.
    """
    return TokenReducer(
        "redundancy_drop",
        (Stage(_keep(keep_ratio, keep_count), layer=layer, score=Distinctness()),),
        position_mode=positions,
    )


def _keep(ratio: float | None, count: int | None) -> Keep:
    return Keep(ratio=0.5 if ratio is None and count is None else ratio, count=count)
