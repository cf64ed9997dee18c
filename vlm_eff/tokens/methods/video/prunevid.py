"""PruneVid."""

from __future__ import annotations

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep, check_ratio
from vlm_eff.tokens.methods.video import SERVED
from vlm_eff.tokens.reduce.drop import Drop
from vlm_eff.tokens.reduce.scenes import SceneMerge
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage
from vlm_eff.tokens.scores_question import QuestionPeak
from vlm_eff.tokens.select_video import PerFrame


@method(room="tokens", acts="before and between decoder layers", paper="arXiv:2412.16117", families=SERVED)
def prunevid(
    keep_ratio: float = 0.4,
    layer: int | None = None,
    merge_ratio: float = 0.5,
    static: float = 0.8,
    scenes: float = 0.25,
    least: int = 14,
) -> TokenReducer:
    """Merge what stands still in each scene and what is alike in each picture; then keep what the question looks at.

    Reduce   before the language model: frames are grouped into scenes by density peaks of their mean tokens. A place
             whose tokens are alike (mean cosine above `static`) is averaged over the scene. Then the unchanging places,
             and the rest of each frame, are merged to `merge_ratio` of their number by density-peak clustering
    Score    at `layer`: largest attention that any head of any token of the question pays in the layer before  [B, V]
    Select   the best `keep_ratio` of each frame, where a scene's unchanging places count to its first frame
    When     twice; images in the prompt are left alone; positions are kept
    Paper    PruneVid, arXiv:2412.16117; follows the released code, which serves PLLaVA alone
    Differs  the code also takes the dropped tokens out of the cache of the earlier layers, to save their memory while
             decoding; that is an action on the cache, not on tokens, and is left out: the earlier layers keep what they
             computed. Its scenes come from cluster labels made contiguous; here frames between two peaks are cut where
             they are most like them in sum. It fails on scenes of one frame, which have no pairs: here nothing stands
             still in them. Ties of the density go to the earlier token, not to noise.
    Cost     distances of the tokens of a picture to one another, and attention rows of the question in one layer
    Saves    prefill FLOPs and KV cache, from each of the two places on; realised

    Args:
        keep_ratio: fraction of the tokens left in a frame that stays at `layer`, (0, 1], rounded up.
        layer: decoder layer at whose input tokens are dropped, at least 1; default 10 of 32, relative to the depth.
        merge_ratio: fraction of a picture's tokens that stays, (0, 1], rounded up; 1 merges nothing, over time neither.
        static: mean cosine above which a place stands still, [-1, 1].
        scenes: scenes as a fraction of the frames, [0, 1], rounded down, at least one.
        least: pictures with no more tokens than this are not clustered.

    Raises:
        ConfigError: a ratio, cosine or fraction out of its range, or a layer that is none.
        CapabilityError: at attach, for a layer the decoder does not have or one without a layer before it.
    """
    check_ratio("merge_ratio", merge_ratio)
    merge = Stage(Keep(ratio=merge_ratio, of="current"), layer=0, reduce=SceneMerge(scenes, static, least))
    keep = Keep(ratio=keep_ratio, of="current")
    depth = 10 / 32 if layer is None else None
    drop = Stage(keep, layer=layer, depth=depth, score=QuestionPeak(), select=PerFrame(), reduce=Drop())
    return TokenReducer("prunevid", (merge, drop), SceneMerge(scenes, static, least))
