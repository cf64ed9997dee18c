"""ToMe: merge the most similar tokens in every block of the vision tower."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_eff.core.registry import method
from vlm_eff.tokens.vit_merge import TowerMerger, merge_schedule


@method(room="tokens", acts="inside the vision tower", paper="arXiv:2210.09461")
def tome(
    r: int | Sequence[float] | None = None,
    r_ratio: float | None = None,
    inflect: float = 0.0,
    proportional: bool = True,
) -> TowerMerger:
    """Merge the r most similar pairs of tokens in every block of the vision tower.

    Between attention and MLP of each block the tokens at even places look for the most similar token at an odd place
    (cosine of their keys, mean over heads); the r best pairs become one token each, the mean weighted by how many
    original tokens each stands for. Class token and registers take no part. Later attention counts a token as often as
    it stands for original ones (log-size bias on its key), without an N x N matrix.

    Behind every block each original token gets the feature of the token it became part of, so that pooling heads,
    captured hidden states, pixel shuffles, patch mergers, DeepStack taps and projectors see all places: the language
    model of a VLM reads as many tokens as before, and only the tower is faster. Means over patches count by size.

    Paper arXiv:2210.09461, sections 3 and 4; follows the official code in its defaults: r = 13 for ViT-S and ViT-B of
    16 x 16 patches at 224 pixels (7 for L/16, 23 for L at 384), r clamped to half of what is left, unmerged ones before
    odd ones. Differs: unmerged tokens keep ascending order in towers without a class token too (official: order of
    scores); rotary towers match keys after rotation, as their attention uses them. In packed towers (Qwen-VL, Pixtral)
    pairs never cross an image, a frame or a window, and the r best of the whole image or frame are merged. A merged
    token keeps the rotary position of its odd member.
    Costs one T/2 x T/2 product of head width a block. Saves the attention and MLP of the merged tokens in all later
    blocks, and the MLP in the same block.

    Args:
        r: pairs a block: a number, a pair (r, inflect) with a float second, or a list with one number a block.
            Default 13 when `r_ratio` is not given.
        r_ratio: pairs a block as a fraction of an image's patches, below 0.5: for towers of any input size.
        inflect: from -1 (twice as many in the first block, none in the last) over 0 (constant) to 1 (the reverse).
        proportional: weight attention by size; False for towers trained as masked autoencoders.

    Raises:
        ConfigError: both r and r_ratio, or values outside their range.
        CapabilityError: flash attention in the tower, which takes no bias on keys.
    """
    if r is None and r_ratio is None:
        r = 13
    return TowerMerger("tome", merge_schedule(r, r_ratio, inflect), proportional)
