"""ATP with learned thresholds; `atp` is the form that needs no training."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep, check_ratio
from vlm_eff.tokens.schedule import Stage, check_layers
from vlm_eff.tokens.select import TopKAndGrid
from vlm_eff.tokens.thresholds import ThresholdReducer


@method(room="tokens", acts="between decoder layers", paper="arXiv:2412.00447", training_free=False)
def atp_learned(
    keep_ratio: float = 0.25,
    layers: Sequence[int] | None = None,
    stride: int = 4,
    temperature: float = 0.1,
    weights: str | None = None,
    untrained: bool = False,
) -> ThresholdReducer:
    """Keep visual tokens above a learned threshold of each sample and layer, and an even grid of them.

    Score    half what visual tokens, half what the words after the image pay to a token in the layer before, a look;
             as standardised logarithms  [B, V]
    Select   above the threshold that a small predictor reads off the scores, and every `stride`-th row and column
    Reduce   drop; in training mode sigmoid((score - threshold) / temperature) is added to attention as a logarithm, and
             `handle.penalty()` is the distance of the mean count from its target
    Paper    ATP-LLaVA, arXiv:2412.00447: adaptive pruning and spatial augmented pruning; no official code
    Differs  the paper trains the model along and samples its grid at a rate of its own; here the model may be frozen,
             the grid has one stride, and the predictor is linear in four facts of the scores. Positions are kept.
    Cost     attention rows of the visual tokens and the words in the layers before; chunked, but V x L products
    Saves    prefill FLOPs and KV cache from the first layer on, in eval mode only; realised

    Args:
        keep_ratio: fraction of the original visual tokens aimed at in the last of `layers`, (0, 1]; the layers before
            go there in equal ratios. It steers training alone; 1 drops nothing.
        layers: decoder layers, at least 1; default a quarter and half of the decoder.
        stride: distance of the grid's rows and columns, tokens.
        temperature: softness of the mask while training, above 0.
        weights: safetensors file of a trained predictor.
        untrained: allow a model in eval mode without weights; the threshold is then the mean score.

    Raises:
        ConfigError: values out of range, or a weights file that is missing or was made for something else.
        CapabilityError: at attach, for layers the decoder does not have or a predictor without weights in eval mode; in
            training, for a cache that holds tokens already, or flash attention.
    """
    check_ratio("keep_ratio", keep_ratio)
    check_layers(layers)
    places = [{"layer": layer} for layer in layers] if layers else [{"depth": 0.25}, {"depth": 0.5}]
    stages = tuple(
        Stage(Keep(ratio=keep_ratio ** ((number + 1) / len(places))), **place)  # type: ignore[arg-type]
        for number, place in enumerate(places)
    )
    return ThresholdReducer("atp_learned", stages, TopKAndGrid(stride), temperature, weights, untrained)
