"""Adaptive pooling of PLLaVA."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens.reduce.grid_pool import GridDecides, GridPool
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage


@method(room="tokens", acts="before or between decoder layers", paper="arXiv:2404.16994")
def adaptive_pool(
    rows: int = 12,
    columns: int = 12,
    frames: int | None = 16,
    layer: int = 0,
    positions: Literal["kept", "reindexed"] = "kept",
) -> TokenReducer:
    """Average the visual tokens over a grid of a given shape: frames, rows and columns.

    Score    none                    Reduce  mean over each window, written at the token in the window's middle
    When     once, at the input of `layer` (0: before the language model)
    Paper    PLLaVA, arXiv:2404.16994: adaptive average pooling of [T, 24, 24] to (16, 12, 12) behind the
             projector, whose output the hidden states at layer 0 are
    Differs  PLLaVA is trained with its pooling, this is not. It repeats frames of short videos up to 16; here a grid
             never grows: a side that is smaller than asked stays. Images are pooled tile by tile, videos as one block.
             A grid that already fits is left untouched, bit for bit.
    Cost     one pass over the visual hidden states; the windows are laid out on the host
    Saves    prefill FLOPs and KV cache from `layer` on; realised

    Args:
        rows: rows of the pooled grid of each tile or frame, at most.
        columns: columns of it, at most.
        frames: frames that a video is pooled to, at most; None pools within frames alone. Averaging over time hurts
            more than over space, says the paper.
        layer: decoder layer at whose input tokens are pooled; official 0.
        positions: "kept" or "reindexed" (official).

    Raises:
        ConfigError: a side below 1, or a negative layer.
    """
    reduce = GridPool(rows, columns, frames)
    # the count of one tile; how many tiles there are is seen in the call
    stage = Stage(Keep(count=rows * columns), layer=layer, select=GridDecides())
    return TokenReducer("adaptive_pool", (stage,), reduce, position_mode=positions)
