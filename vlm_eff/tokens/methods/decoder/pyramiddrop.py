"""PyramidDrop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep, check_ratio
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage, check_layers
from vlm_eff.tokens.scores import QueryAttention


@method(room="tokens", acts="between decoder layers", paper="arXiv:2410.17247")
def pyramiddrop(
    keep_ratio: float = 0.5,
    layers: Sequence[int] | None = None,
    positions: Literal["kept", "reindexed"] = "kept",
) -> TokenReducer:
    """Keep fewer visual tokens stage by stage, by what the last prompt token would look at in each stage's layer.

    Score    attention of the last prompt token with the projections of the stage's own layer, mean over heads  [B, V]
    Select   top-k of the sample     Reduce  drop     When  at the input of each of `layers` (0-based)
    Paper    PyramidDrop, arXiv:2410.17247, section 3.2; follows the released code: stage i keeps int(n * keep_ratio**i)
             of the n original tokens
    Differs  the code numbers the survivors anew at every stage ("reindexed"); here "kept" is the default, because it
             works on every family and makes dropping equal to masking. Batches, several images and GQA work.
    Cost     per stage one input norm and key projection over the sequence   Saves  prefill FLOPs and KV cache; realised

    Args:
        keep_ratio: factor of each stage, (0, 1]; counts are rounded down as in the code, at least one token stays.
        layers: decoder layers of the stages; default a quarter, half and three quarters of the decoder, which is
            (8, 16, 24) of 32 as in the paper.
        positions: "kept", or "reindexed" as the official code (one-axis rotary families only).

    Raises:
        ConfigError: a ratio outside (0, 1], layers that do not ascend.
        CapabilityError: at attach, for layers the decoder does not have, or "reindexed" on a multi-axis family.
    """
    check_ratio("keep_ratio", keep_ratio)
    check_layers(layers)
    places = [{"layer": layer} for layer in layers] if layers else [{"depth": d} for d in (0.25, 0.5, 0.75)]
    stages = tuple(
        Stage(Keep(ratio=keep_ratio ** (i + 1), rounding="down"), score=QueryAttention(when="before"), **place)  # type: ignore[arg-type]
        for i, place in enumerate(places)
    )
    return TokenReducer("pyramiddrop", stages, position_mode=positions)
