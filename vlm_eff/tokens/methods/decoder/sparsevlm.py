"""SparseVLM."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep, check_choice, check_ratio
from vlm_eff.tokens.reduce.drop import Drop
from vlm_eff.tokens.reduce.recycle import Recycle
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage, check_layers
from vlm_eff.tokens.scores_rows import RaterAttention

# of 576 tokens, kept at the three stages for 64, 96, 128 and 192 tokens averaged over the layers: with and without
# recycling (version 1.5 and version 2 of the released code)
_LISTS = {
    True: {64: (66, 30, 17), 96: (238, 48, 26), 128: (303, 110, 36), 192: (300, 200, 110)},
    False: {64: (66, 34, 20), 96: (246, 54, 28), 128: (238, 108, 60), 192: (300, 200, 118)},
}
_LAYERS = (2, 6, 15)


@method(room="tokens", acts="between decoder layers", paper="arXiv:2410.04417")
def sparsevlm(
    keep_ratio: float | None = None,
    counts: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    recycle: bool = True,
    heads: float = 1.0,
    positions: Literal["kept", "reindexed"] = "kept",
    faithful: bool = False,
) -> TokenReducer:
    """Keep what the question's relevant words look at, in three stages, and merge some of the rest.

    Score    attention of the rater words in the layer before the stage, mean over words and heads; raters are chosen at
             the first layer's input by their similarity to the image  [B, V]
    Select   top-k of the sample     Reduce  recycle: of the tokens that go the best 30 % are clustered and averaged
    Paper    SparseVLM, arXiv:2410.04417, sections 3.2 to 3.4; counts follow the released code's fixed lists for 64, 96,
             128 and 192 of 576 tokens, on straight lines between them (the paper's rank rule is not in the code)
    Differs  the lists meet their budget when tokens go before layers 2, 6 and 15, but the code drops behind them, which
             costs 15 to 17 tokens more: see `faithful`. Merged tokens stand where their cluster's centre stood, not
             behind the kept ones; the clustering has no random noise. Batches, several images and GQA work; a few
             rows are read, no L x L matrix. Version 2's rotary "gravity" prior is not here
    Cost     the raters' attention rows in three layers, clustering   Saves  prefill FLOPs and KV cache; realised

    Args:
        keep_ratio: fraction of the visual tokens left, averaged over the decoder's layers, (0, 1]; default 1/3.
        counts: tokens kept at the three stages, merged ones not counted, instead of the ratio.
        layers: the three stages (tokens go at their inputs); default (2, 6, 15) of 32, at the same depths of others.
        recycle: False drops everything else, as version 2 does (whose lists are then taken).
        heads: fraction of the heads that counts, those that look at the image most; version 2 takes 14 of 32.
        positions: "kept" (version 2) or "reindexed" (version 1.5; one-axis rotary families only).
        faithful: True drops one layer later, (3, 7, 16) of 32, as the code runs; more tokens than the budget says.

    Raises:
        ConfigError: a ratio outside (0, 1], ratio and counts together, counts or layers that are not three.
        CapabilityError: at attach, for layers the decoder does not have.
    """
    check_ratio("keep_ratio", keep_ratio)
    check_layers(layers, count=3)
    keeps = _keeps(keep_ratio, counts, recycle)
    check_choice("faithful", faithful, (False, True))
    places = [{"layer": at} for at in layers] if layers else [{"depth": (at + faithful) / 32} for at in _LAYERS]
    score = RaterAttention(heads)
    stages = tuple(Stage(keep, score=score, **place) for keep, place in zip(keeps, places, strict=True))  # type: ignore[arg-type]
    return TokenReducer("sparsevlm", stages, reduce=Recycle() if recycle else Drop(), position_mode=positions)


def _keeps(ratio: float | None, counts: Sequence[int] | None, recycle: bool) -> list[Keep]:
    if counts is None:
        shares = _shares(1 / 3 if ratio is None else ratio, recycle)
        return [Keep(ratio=share, rounding="nearest") for share in shares]
    if ratio is not None or isinstance(counts, str) or not isinstance(counts, Sequence) or len(counts) != 3:
        raise ConfigError(
            explain(
                f"counts={counts!r} and keep_ratio={ratio}",
                "three counts, such as (300, 200, 110), or a keep_ratio",
                "Give one of the two",
            )
        )
    return [Keep(count=count) for count in counts]


def _shares(ratio: float, recycle: bool) -> list[float]:
    """Fraction kept at each stage for tokens averaged over the layers: straight lines between the published lists."""
    lists = [(budget / 576, tuple(n / 576 for n in kept)) for budget, kept in _LISTS[recycle].items()]
    # nothing is kept: what the layers before the first stage see is left; everything is kept
    knots = [(_LAYERS[0] / 32, (0.0, 0.0, 0.0)), *lists, (1.0, (1.0, 1.0, 1.0))]
    if ratio <= knots[0][0]:
        return [1e-9] * 3
    for (low, first), (high, second) in pairwise(knots):
        if ratio <= high:
            part = (ratio - low) / (high - low)
            return [max(a + part * (b - a), 1e-9) for a, b in zip(first, second, strict=True)]
    return [1.0] * 3
