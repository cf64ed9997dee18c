"""Zero-TPrune: rank patches by PageRank on the attention graph, then drop doubles."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_eff.core.registry import method
from vlm_eff.tokens.vit_drop import TowerDropper, given_blocks
from vlm_eff.tokens.vit_scores import PageRank


@method(room="tokens", acts="inside the vision tower", paper="arXiv:2305.17328")
def zero_tprune(
    keep_ratio: float = 0.8,
    similar: float = 0.1,
    blocks: Sequence[int] | None = None,
    low: float = 0.01,
    high: float = 0.7,
) -> TowerDropper:
    """Drop the patches that rank lowest on the attention graph between blocks, and doubles of more important ones.

    Before a block the attention of the block before is a graph for each head: a token gives its importance to those it
    looks at, until importance settles (weighted PageRank: 40 steps in the first third of the tower, 8 in the middle, 1
    in the last). Heads whose scores vary too little or too much are left out, the others are joined by their root mean
    square. The best patches stay (stage I). Of these, the less important half is compared with the more important half
    by cosine of keys, and those most like another one are dropped too (stage S). Dropped patches skip the rest of the
    tower and come back behind it with the state they had; the language model of a VLM reads as many tokens as before.

    Paper arXiv:2305.17328, section 3. No official code could be had, so that what the paper leaves open is ours: the
    variance is that of scores scaled to mean one; the number of steps is fixed by depth, so that an image does not
    depend on its neighbours; stage S matches the two halves by importance; stages, ratios and thresholds are defaults
    of ours, chosen to save about what EViT saves. Costs the attention of one block once more a stage, one head at a
    time. Saves about a third of the tower's FLOPs with the defaults.

    Args:
        keep_ratio: fraction of the patches left at a stage that stage I keeps, rounded up.
        similar: fraction of them that stage S drops besides, rounded down; 0 leaves the stage out.
        blocks: 0-based blocks, from 1 on; None for a quarter, a half and three quarters of the tower.
        low: variance below which a head is left out: it tells nothing apart.
        high: variance above which a head is left out: it looks at a single place.

    Raises:
        ConfigError: ratios or variances outside their range, or blocks that do not ascend.
        CapabilityError: a block the tower does not have, block 0, or flash attention.
    """
    blocks_ = given_blocks(blocks)
    return TowerDropper("zero_tprune", PageRank(low, high), keep_ratio, blocks_, similar=similar, when="before")
