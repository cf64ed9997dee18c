"""The baselines that every method has to beat: random, an even grid, average pooling. None looks at the question."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens.reduce.pool import AveragePool
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage
from vlm_eff.tokens.scores import GridSpread, RandomScore
from vlm_eff.tokens.select import TopK

Positions = Literal["kept", "reindexed"]


@method(room="tokens", acts="before or between decoder layers", paper="baseline")
def random_drop(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    layer: int = 0,
    seed: int = 0,
    positions: Positions = "kept",
) -> TokenReducer:
    """Keep visual tokens at random.

    Score    uniform, drawn from seed and prompt: equal for all beams, batches and paddings of a prompt  [B, V]
    Select   top-k of the sample     Reduce  drop     When  once, at the input of `layer` (0: before the language model)
    Cost     none                    Saves   prefill FLOPs and KV cache from `layer` on; realised

    Args:
        keep_ratio: fraction of the visual tokens kept, (0, 1], rounded up. Default 0.5.
        keep_count: tokens kept of each sample, instead of the ratio.
        layer: decoder layer at whose input tokens are dropped.
        seed: another seed makes another choice; the global random state is not touched.
        positions: "kept" or "reindexed".

    Raises:
        ConfigError: a ratio outside (0, 1], a negative layer, or both ratio and count.
    """
    stage = Stage(_keep(keep_ratio, keep_count), layer=layer, score=RandomScore(seed))
    return TokenReducer("random_drop", (stage,), position_mode=positions)


@method(room="tokens", acts="before or between decoder layers", paper="baseline")
def uniform_grid(
    keep_ratio: float | None = None, keep_count: int | None = None, layer: int = 0, positions: Positions = "kept"
) -> TokenReducer:
    """Keep visual tokens that cover every image evenly.

    Score    place in the order of dithering: a quarter is every second row and column, half a checkerboard  [B, V]
    Select   top-k of each image     Reduce  drop     When  once, at the input of `layer` (0: before the language model)
    Cost     none                    Saves   prefill FLOPs and KV cache from `layer` on; realised

    Args:
        keep_ratio: fraction of the tokens of each image kept, (0, 1], rounded up. Default 0.5.
        keep_count: tokens kept of each image, instead of the ratio.
        layer: decoder layer at whose input tokens are dropped.
        positions: "kept" or "reindexed".

    Raises:
        ConfigError: a ratio outside (0, 1], a negative layer, or both ratio and count.
    """
    stage = Stage(_keep(keep_ratio, keep_count), layer=layer, score=GridSpread(), select=TopK(per="image"))
    return TokenReducer("uniform_grid", (stage,), position_mode=positions)


@method(room="tokens", acts="before or between decoder layers", paper="baseline; PLLaVA, arXiv:2404.16994")
def average_pool(
    keep_ratio: float | None = None, keep_count: int | None = None, layer: int = 0, positions: Positions = "kept"
) -> TokenReducer:
    """Average the visual tokens of each image over a coarser grid.

    Score    none                    Reduce  mean over windows, written at the token nearest the window's centre
    When     once, at the input of `layer` (0: before the language model)
    Differs  PLLaVA pools before the projector's output enters the model; the hidden states at layer 0 are that output.
             The pooled grid has whole rows and columns, so fewer tokens may be got than asked; the report shows both.
    Cost     one pass over the visual hidden states      Saves  prefill FLOPs and KV cache from `layer` on; realised

    Args:
        keep_ratio: fraction of the tokens of each tile or frame kept at most, (0, 1]. Default 0.25.
        keep_count: tokens of each tile or frame at most, instead of the ratio.
        layer: decoder layer at whose input tokens are pooled.
        positions: "kept" or "reindexed".

    Raises:
        ConfigError: a ratio outside (0, 1], a negative layer, or both ratio and count.
    """
    stage = Stage(_keep(keep_ratio, keep_count, default=0.25), layer=layer)
    return TokenReducer("average_pool", (stage,), AveragePool(), position_mode=positions)


def _keep(ratio: float | None, count: int | None, default: float = 0.5) -> Keep:
    return Keep(ratio=default if ratio is None and count is None else ratio, count=count)
