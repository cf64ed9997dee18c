"""V-CAST."""

from __future__ import annotations

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens.methods.video import SERVED
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage
from vlm_eff.tokens.scores_video import FrameOutlier
from vlm_eff.tokens.select_video import CurvatureBudget


@method(room="tokens", acts="before the language model", paper="arXiv:2603.27650", families=SERVED)
def vcast(keep_ratio: float | None = None, keep_count: int | None = None, temperature: float = 0.7) -> TokenReducer:
    """Give more tokens to the frames at which a video turns, and keep what stands out in each.

    Score    1 - cosine to the frame's mean token, plus the token's length on a scale of the frame  [B, V]
    Select   top-k of each frame; a video's budget is shared by softmax(curvature / temperature), where curvature is
             1 - cosine of the steps of the frames' mean vectors into and out of a frame; each frame keeps a token
    Reduce   drop     When  once, before the language model; images in the prompt are left alone
    Paper    V-CAST, arXiv:2603.27650; follows the released code, floors and largest remainders
    Differs  the code serves Qwen3-VL and one prompt; here batches, several videos and every family with video inputs.
             Budgets above a frame's size go to the other frames. DeepStack features stay with their tokens.
    Cost     means, norms and cosines of the tokens      Saves  prefill FLOPs and KV cache of all layers; realised

    Args:
        keep_ratio: fraction of the tokens of each video kept, (0, 1], rounded up. Default 0.25.
        keep_count: tokens kept of each video, instead of the ratio; never fewer than it has frames.
        temperature: smaller ones follow the curvature more closely.

    Raises:
        ConfigError: a ratio outside (0, 1], both ratio and count, or a temperature that is not above 0.
    """
    if keep_ratio is None and keep_count is None:
        keep_ratio = 0.25
    keep = Keep(ratio=keep_ratio, count=keep_count)
    stage = Stage(keep, layer=0, score=FrameOutlier(), select=CurvatureBudget(temperature))
    return TokenReducer("vcast", (stage,))
