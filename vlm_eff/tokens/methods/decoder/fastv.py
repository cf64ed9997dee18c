"""FastV."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage
from vlm_eff.tokens.scores import QueryAttention


@method(room="tokens", acts="between decoder layers", paper="arXiv:2403.06764")
def fastv(
    layer: int = 2,
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    keep_mass: float | None = None,
    positions: Literal["kept", "reindexed"] = "kept",
) -> TokenReducer:
    """Keep the visual tokens that the last prompt token looks at most in an early layer.

    Score    attention of the last prompt token in layer `layer - 1`, mean over heads  [B, V]
    Select   top-k of the sample     Reduce  drop     When  once, at the input of `layer` (0-based)
    Paper    FastV, arXiv:2403.06764, section 4.1 (K = `layer`, R = 1 - `keep_ratio`); follows the released code
    Differs  the paper averages attention over all queries, the code takes the last one: we follow the code. One row is
             read where the layer computes it, so no L x L matrix and no eager attention. Batches and GQA work.
    Cost     one attention row [B, H, 1, L]           Saves  prefill FLOPs and KV cache from `layer` on; realised

    Args:
        layer: decoder layer before which tokens are dropped, at least 1.
        keep_ratio: fraction of the visual tokens kept, (0, 1], rounded to the nearest as in the code; default 0.5.
        keep_count: tokens kept, instead of the ratio.
        keep_mass: as few of the best tokens of each sample as hold this share of its visual attention, (0, 1], instead
            of the ratio; our addition.
        positions: "kept" (official) or "reindexed".

    Raises:
        ConfigError: a ratio or mass outside (0, 1], a negative layer, or more than one of ratio, count and mass.
        CapabilityError: at attach, for a layer the decoder does not have.
    """
    if keep_ratio is None and keep_count is None and keep_mass is None:
        keep_ratio = 0.5
    keep = Keep(ratio=keep_ratio, count=keep_count, mass=keep_mass, rounding="nearest")
    return TokenReducer("fastv", (Stage(keep, layer=layer, score=QueryAttention()),), position_mode=positions)
