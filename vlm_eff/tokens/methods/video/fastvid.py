"""FastVID."""

from __future__ import annotations

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens.methods.video import SERVED
from vlm_eff.tokens.reduce.anchors import DensityAnchors
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage
from vlm_eff.tokens.scores_tower import TowerScore
from vlm_eff.tokens.select_video import PerFrame


@method(room="tokens", acts="before the language model", paper="arXiv:2503.11187", families=SERVED)
def fastvid(
    keep_ratio: float = 0.1,
    segments: int = 8,
    threshold: float = 0.9,
    context: float = 0.4,
    every: int = 4,
    own: float = 0.6,
    block: int | None = None,
    faithful: bool = False,
) -> TokenReducer:
    """Keep the tokens of each frame that the tower looks at, and merge the rest of each scene into dense places.

    Score    attention that a patch receives in the vision tower, mean over the patches of a token  [B, V]
    Select   of each frame's int(n * keep_ratio) tokens those that are not merged ones: the best by score
    Reduce   segments of frames are cut at the `segments` - 1 least alike neighbours and at all below `threshold`.
             Every `every`-th frame of one, from its end, holds density peaks; what was not chosen joins the nearest
    When     once, before the language model; images in the prompt are left alone; positions are kept
    Paper    FastVID, arXiv:2503.11187; follows the released code
    Differs  the code reads attention and frame vectors from SigLIP's pooling head, which the models do not carry: here
             attention received in the tower, and the mean of a frame's tokens. It breaks ties of the density by random
             noise, here the earlier token wins. It cuts a video without a change into `segments` as well; `faithful`
             does so too, otherwise equal frames stay together. Qwen2.5-VL: the code takes threshold=0.84.
    Cost     attention of one tower block, and distances of the unchosen tokens to the anchors and in anchor frames
    Saves    prefill FLOPs and KV cache of all layers; realised

    Args:
        keep_ratio: fraction of the tokens of each frame, merged ones included, (0, 1], rounded down, at least one.
        segments: scenes that a video is cut into at least, where its frames differ.
        threshold: cosine of neighbouring frames below which they are parted, [-1, 1].
        context: part of each frame's budget that is merged, [0, 1].
        every: distance of the frames that hold merged tokens.
        own: least part of an anchor in its mean, [0, 1].
        block: tower block, 0-based or negative; default the block whose output becomes the tokens.
        faithful: cut equal frames as the released code does.

    Raises:
        ConfigError: a ratio, threshold or part out of its range, or a number below 1.
        CapabilityError: at attach, for a block the tower does not have.
    """
    reduce = DensityAnchors(segments, threshold, context, every, own=own, faithful=faithful)
    keep = Keep(ratio=keep_ratio, rounding="down")
    stage = Stage(keep, layer=0, score=TowerScore(block, "received"), select=PerFrame(context))
    return TokenReducer("fastvid", (stage,), reduce)
