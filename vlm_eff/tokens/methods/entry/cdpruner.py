"""CDPruner."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens.diverse import Determinantal
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage
from vlm_eff.tokens.scores_text import TextRelevance


@method(room="tokens", acts="before or between decoder layers", paper="arXiv:2506.10967")
def cdpruner(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    relevance_weight: float | None = 0.5,
    relevance: Literal["negative", "positive"] = "negative",
    layer: int = 0,
    positions: Literal["kept", "reindexed"] = "kept",
) -> TokenReducer:
    """Keep visual tokens that have to do with the question and are unlike one another.

    Score    relevance: mean cosine of a token to the words after the image, a row's least to largest as 0 to 1  [B, V]
    Select   greedy MAP of a determinantal point process: kernel = relevance_i * cosine(i, j) * relevance_j
    Reduce   drop                    When  once, at the input of `layer` (0: before the language model)
    Paper    CDPruner, arXiv:2506.10967; selection follows the released code, relevance its port to OpenVINO GenAI
    Differs  the paper takes relevance from CLIP's text tower, which no checkpoint of a VLM holds; here, as in the port,
             it comes from the language model's own embeddings. Expect less of it: published rows need the CLIP towers.
             The code spreads relevance over the whole batch and numbers the survivors anew ("reindexed"); here every
             row is spread by itself, and "kept" is the default. Words of the chat template count as question.
    Cost     V * V * D multiply-adds once, then V * t for the t-th kept token; all rows of a batch in one step
    Saves    prefill FLOPs and KV cache from `layer` on; realised

    Args:
        keep_ratio: fraction of the visual tokens kept, (0, 1], rounded up. Default 1/9, the paper's 64 of 576.
        keep_count: tokens kept of each sample, instead of the ratio.
        relevance_weight: theta in [0, 1): quality is exp(relevance * theta / (2 - 2 * theta)); 0 is diversity alone,
            0.5 the port's default. None takes the relevance itself as quality, as the paper's code does with CLIP.
        relevance: "negative" takes tokens that are less like the words for more relevant, as the code does; "positive"
            those that are more like them.
        layer: decoder layer at whose input tokens are dropped; official 0.
        positions: "kept" or "reindexed" (official).

    Raises:
        ConfigError: a ratio outside (0, 1], a weight outside [0, 1), a negative layer, or both ratio and count.
    """
    if keep_ratio is None and keep_count is None:
        keep_ratio = 1 / 9
    score = TextRelevance(relevance, relevance_weight)
    stage = Stage(Keep(ratio=keep_ratio, count=keep_count), layer=layer, score=score, select=Determinantal())
    return TokenReducer("cdpruner", (stage,), position_mode=positions)
