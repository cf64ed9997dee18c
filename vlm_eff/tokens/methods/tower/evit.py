"""EViT: keep the patches that the class token looks at, and fuse the others into one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vlm_eff.core.registry import method
from vlm_eff.tokens.vit_drop import TowerDropper, given_blocks
from vlm_eff.tokens.vit_scores import ClassAttention


@method(room="tokens", acts="inside the vision tower", paper="arXiv:2202.07800")
def evit(
    keep_ratio: float = 0.7,
    blocks: Sequence[int] | None = None,
    row: Literal["auto", "cls", "received"] = "auto",
    fuse: bool = True,
    faithful: bool = False,
) -> TowerDropper:
    """Drop the patches that the class token looks at least, at three blocks of the tower, and fuse them into one token.

    Between attention and MLP of a block the patches are ranked by the class token's attention in this block, mean over
    heads; the best go on with the class token, the others become one token weighted by that attention, which is ranked
    like a patch from then on. Dropped patches skip the rest of the tower and come back behind it with the state they
    had when they were dropped, so that the language model of a VLM reads as many tokens as before; means over patches
    of a tower alone count these states too.

    Paper arXiv:2202.07800, sections 3.2 and 3.3; defaults of its code for DeiT-S: 0.7 of what is left at blocks 3, 6
    and 9 of 12, here a quarter, a half and three quarters of any tower. Differs: the paper trains with dropping, we do
    not; weights of the fused token are divided by their sum, because the plain sum of the code is far smaller than any
    token it was trained beside (`faithful=True` keeps the sum); towers without a class token use the attention that
    each patch receives; nothing is fused in towers with windows (Qwen2.5-VL), where a new token has no place.
    Costs one query row a stage (all rows, one head at a time, without a class token). Saves about a third of the
    tower's FLOPs with the defaults.

    Args:
        keep_ratio: fraction of the patches left at a stage that goes on, rounded up.
        blocks: 0-based blocks; None for a quarter, a half and three quarters of the tower.
        row: whose attention ranks: "cls", "received", or "auto" for "cls" where there is a class token.
        fuse: False drops without a fused token.
        faithful: fuse by the plain weighted sum, as the official code does.

    Raises:
        ConfigError: a ratio outside (0, 1], or blocks that do not ascend.
        CapabilityError: row="cls" on a tower without a class token, a block it does not have, or flash attention.
    """
    how: Literal["none", "mean", "sum"] = "none" if not fuse else "sum" if faithful else "mean"
    return TowerDropper("evit", ClassAttention(row), keep_ratio, given_blocks(blocks), fuse=how)
