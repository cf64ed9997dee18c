"""DART."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage
from vlm_eff.tokens.scores_hidden import KeyNorm
from vlm_eff.tokens.select_pivots import LeastLikePivots


@method(room="tokens", acts="between decoder layers", paper="arXiv:2502.11494")
def dart(
    layer: int = 2,
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    pivots: int = 4,
    text_pivots: int = 4,
    rule: Literal["rounds", "nearest"] = "rounds",
    positions: Literal["kept", "reindexed"] = "kept",
    faithful: bool = False,
) -> TokenReducer:
    """Keep a few pivots and the visual tokens that are least like them: duplicates go, not the unimportant.

    Score    L1 norm of the key in layer `layer - 1`, all heads together: its best tokens are the pivots  [B, V]
    Select   visual pivots, and what is least cosine-similar to visual and text pivots; hidden states are compared at
             the stage's input     Reduce  drop     When  once, at the input of `layer` (0-based)
    Paper    DART, arXiv:2502.11494, section 4; known to us from its ports: pivots take equal shares one after another
    Differs  the count is exact: what does not divide by the number of pivots goes to the first ones. The published
             keys carry their rotation, so that pivots change with place and padding; here it is taken out, unless
             `faithful`. In "rounds" a copy of one pivot may be the least similar to another; "nearest" drops copies of
             any pivot first.
    Cost     norms of one layer's keys, and P x V cosines [B, P, V]; no attention is looked at, any kernel will do
    Saves    prefill FLOPs and KV cache from `layer` on; realised

    Args:
        layer: decoder layer before which tokens are dropped, at least 1.
        keep_ratio: fraction of the visual tokens kept, (0, 1], rounded up; default 0.25.
        keep_count: tokens kept, pivots included, instead of the ratio.
        pivots: visual pivots, at least 1.
        text_pivots: text pivots; rows with less text have fewer.
        rule: "rounds" as published, or "nearest".
        positions: "kept" (official) or "reindexed".
        faithful: rank pivots by keys with their rotation; then left padding can change the choice.

    Raises:
        ConfigError: a ratio outside (0, 1], a negative layer, fewer than one pivot, or both ratio and count.
        CapabilityError: at attach, for a layer the decoder does not have.
    """
    if keep_ratio is None and keep_count is None:
        keep_ratio = 0.25
    stage = Stage(
        Keep(ratio=keep_ratio, count=keep_count),
        layer=layer,
        score=KeyNorm(rope=faithful),
        select=LeastLikePivots(pivots, text_pivots, faithful, rule),
    )
    return TokenReducer("dart", (stage,), position_mode=positions)
