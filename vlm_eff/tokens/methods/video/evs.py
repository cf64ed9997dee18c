"""Efficient video sampling."""

from __future__ import annotations

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens.methods.video import SERVED
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage
from vlm_eff.tokens.scores_video import FrameNovelty
from vlm_eff.tokens.select_video import PerVideo


@method(room="tokens", acts="before the language model", paper="arXiv:2510.14624", families=SERVED)
def evs(keep_ratio: float | None = None, keep_count: int | None = None) -> TokenReducer:
    """Drop video tokens that look like the same place in the frame before.

    Score    1 - cosine to the token at the same place in the frame before; the first frame is new  [B, V]
    Select   top-k of each video, at least its first frame     Reduce  drop
    When     once, before the language model; images in the prompt are left alone
    Paper    EVS, arXiv:2510.14624; follows what vLLM (22980) and SGLang (14051) run: int(n * keep_ratio) tokens of a
             video, ties to the earlier token
    Differs  they compute positions anew from the kept coordinates, which gives the same numbers: here positions are
             kept. A frame is two pictures on Qwen models. A token whose counterpart is gone already counts as new.
    Cost     one cosine a token                Saves  prefill FLOPs and KV cache of all layers; realised

    Args:
        keep_ratio: fraction of the tokens of each video kept, (0, 1], rounded down. Default 0.2 (SGLang's q = 0.8).
        keep_count: tokens kept of each video, instead of the ratio; never fewer than its first frame has.

    Raises:
        ConfigError: a ratio outside (0, 1], or both ratio and count.
    """
    if keep_ratio is None and keep_count is None:
        keep_ratio = 0.2
    keep = Keep(ratio=keep_ratio, count=keep_count, rounding="down")
    return TokenReducer("evs", (Stage(keep, layer=0, score=FrameNovelty(), select=PerVideo()),))
