"""FEATHER."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep, check_ratio
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage, check_layers
from vlm_eff.tokens.scores import QueryAttention
from vlm_eff.tokens.select import TopKAndGrid


@method(room="tokens", acts="between decoder layers", paper="arXiv:2412.13180")
def feather(keep_ratio: float = 0.3, layers: Sequence[int] | None = None, stride: int = 3) -> TokenReducer:
    """Keep tokens by attention without its rotary bias, together with an even grid; prune hard in a later layer.

    Score    attention of the last prompt token in the layer before the stage, rotation taken out, softmax over the
             visual tokens alone, mean over heads  [B, V]
    Select   stage 1: top-k and every `stride`-th row and column; stage 2: top-k alone     Reduce  drop
    Paper    FEATHER, arXiv:2412.13180, section 5; follows the released code: int(N * keep_ratio) best and the grid,
             then int(M * keep_ratio**2) of the M that were left
    Differs  the code handles one square image; here the grid is taken in every tile or frame. Positions are kept.
    Cost     two attention rows               Saves  prefill FLOPs and KV cache from the first layer on; realised

    Args:
        keep_ratio: fraction of the visual tokens chosen by attention in stage 1, (0, 1]; 1 - R of the paper.
        layers: the two layers; default a quarter and half of the decoder, (8, 16) of 32 as in the paper.
        stride: distance of the grid's rows and columns, tokens.

    Raises:
        ConfigError: a ratio outside (0, 1], a stride below 1, layers that are not two ascending ones.
        CapabilityError: at attach, for layers the decoder does not have.
    """
    check_ratio("keep_ratio", keep_ratio)
    check_layers(layers, count=2)
    first, second = [{"layer": layer} for layer in layers] if layers else [{"depth": 0.25}, {"depth": 0.5}]
    score = QueryAttention(rope=False, over="visual")
    stages = (
        Stage(Keep(ratio=keep_ratio, rounding="down"), score=score, select=TopKAndGrid(stride), **first),  # type: ignore[arg-type]
        Stage(Keep(ratio=keep_ratio**2, of="current", rounding="down"), score=score, **second),  # type: ignore[arg-type]
    )
    return TokenReducer("feather", stages)
