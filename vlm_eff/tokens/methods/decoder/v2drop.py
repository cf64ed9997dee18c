"""V2Drop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep, check_choice, check_ratio
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage, check_layers
from vlm_eff.tokens.scores_hidden import Variation

# shares of all the tokens to be dropped that are gone after each stage, as the paper's text has them
_PAPER = (0.5, 0.7, 1.0)


@method(room="tokens", acts="between decoder layers", paper="V2Drop, CVPR 2026")
def v2drop(
    keep_ratio: float = 0.5,
    layers: Sequence[int] | None = None,
    schedule: Literal["code", "paper"] = "code",
    positions: Literal["kept", "reindexed"] = "kept",
) -> TokenReducer:
    """Drop the visual tokens that the layers change least, in three stages.

    Score    variation: L2 norm of what layer `l - 1` added to the token, for a stage at layer l  [B, V]
    Select   top-k of the sample     Reduce  drop     When  at the input of each of three layers (0-based)
    Paper    V2Drop, CVPR 2026; follows the released code: half of what is left at the first two stages, none at the
             last
    Differs  the text of the paper speaks of 50, 70 and 100 % of the budget, which we read as the share of the tokens to
             be dropped that is gone after each stage: `schedule="paper"`, where a fraction `keep_ratio` of the original
             tokens is left at the end. Stages follow the decoder's depth unless given.
    Cost     one difference of hidden states a stage; no query, no key, any attention kernel
    Saves    prefill FLOPs and KV cache from the first stage on; realised

    Args:
        keep_ratio: "code": fraction of the current tokens kept at the first two stages; "paper": fraction of the
            original tokens left at the end. (0, 1], rounded up.
        layers: the three decoder layers, each at least 1; default 3/32, 17/32 and 22/32 of the decoder.
        schedule: "code" or "paper".
        positions: "kept" (official) or "reindexed".

    Raises:
        ConfigError: a ratio outside (0, 1], layers that are not three ascending ones, an unknown schedule.
        CapabilityError: at attach, for layers the decoder does not have.
    """
    check_ratio("keep_ratio", keep_ratio)
    check_layers(layers, count=3)
    check_choice("schedule", schedule, ("code", "paper"))
    if schedule == "code":
        half = Keep(ratio=keep_ratio, of="current")
        keeps = [half, half, Keep(count=0, least=0)]
    else:
        keeps = [Keep(ratio=1 - gone * (1 - keep_ratio)) for gone in _PAPER]
    places = [{"layer": layer} for layer in layers] if layers else [{"depth": d / 32} for d in (3, 17, 22)]
    stages = tuple(
        Stage(keep, score=Variation(), **place)  # type: ignore[arg-type]
        for keep, place in zip(keeps, places, strict=True)
    )
    return TokenReducer("v2drop", stages, position_mode=positions)
