"""Adaptive thresholds in the manner of ATP-LLaVA, without its training."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep, check_ratio
from vlm_eff.importance.rules import Deviations
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage, check_layers
from vlm_eff.tokens.scores_rows import ReceivedAttention
from vlm_eff.tokens.select import TopKAndGrid


@method(room="tokens", acts="between decoder layers", paper="arXiv:2412.00447")
def atp(
    kappa: float = -0.5,
    keep_ratio: float | None = None,
    layers: Sequence[int] | None = None,
    stride: int = 4,
    every: int = 8,
) -> TokenReducer:
    """Keep the tokens above a threshold of each instance and layer, together with an even grid (ATP-style).

    Score    half the attention received from the image, half that from the question, in the layer before  [B, V]
    Select   scores above mean + `kappa` * standard deviation of the row's candidates, and every `stride`-th row and
             column of each tile     Reduce  drop     When  at the input of each of `layers`; the grid stays every time
    Paper    ATP-LLaVA, arXiv:2412.00447: redundancy score and spatial augmented pruning. No code was released
    Differs  the paper trains a predictor of the thresholds with the model; here the threshold follows from the scores'
             own spread, so its numbers are not to be expected. Attention is a mean over the rows that may look; one in
             `every` image tokens is asked. The default `kappa` and layers are ours. Positions are kept
    Cost     the attention rows of the question and of one in `every` image tokens, in three layers
    Saves    prefill FLOPs and KV cache; realised, and different for every picture

    Args:
        kappa: standard deviations above the mean; lower keeps more.
        keep_ratio: fraction (0, 1] kept by score of what is left at each stage, instead of the threshold (the quantile
            that meets it); the grid comes on top.
        layers: the stages; default a quarter, half and three quarters of the decoder.
        stride: distance of the grid's rows and columns, tokens; a rate of 1 / stride**2.
        every: distance of the image tokens that are asked; 1 asks all.

    Raises:
        ConfigError: a ratio outside (0, 1], a stride or distance below 1, layers that do not ascend, no finite kappa.
        CapabilityError: at attach, for layers the decoder does not have.
    """
    check_ratio("keep_ratio", keep_ratio)
    check_layers(layers)
    keep = Keep(rule=Deviations(kappa)) if keep_ratio is None else Keep(ratio=keep_ratio, of="current")
    places = [{"layer": at} for at in layers] if layers else [{"depth": depth} for depth in (0.25, 0.5, 0.75)]
    score, left, stages = ReceivedAttention(every), 1.0, []
    for place in places:
        stages.append(Stage(keep, score=score, select=TopKAndGrid(stride, left), **place))  # type: ignore[arg-type]
        if keep_ratio is not None:
            # of what goes by score the grid's tokens stay
            left = keep_ratio * left + (1 - keep_ratio) / max(stride, 1) ** 2
    return TokenReducer("atp", tuple(stages))
