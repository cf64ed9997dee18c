"""Skipping all blocks but the first while it changes little."""

from __future__ import annotations

from vlm_eff.core.denoise import StackSite
from vlm_eff.core.registry import method
from vlm_eff.diffusion.predictors import Polynomial
from vlm_eff.diffusion.signals import FirstBlockChange
from vlm_eff.diffusion.step_cache import StepCache
from vlm_eff.diffusion.thresholds import WhileBelow


@method(room="diffusion", acts="the blocks of a transformer", paper="arXiv:2411.19108")
def first_block(
    threshold: float = 0.05,
    order: int = 0,
    first: int = 1,
    last: int = 0,
    warm_up: int = 1,
    per_row: bool = False,
) -> StepCache:
    """Computes the first block of a transformer, and the others when it does something else than the last time.

    Where its residual (out - in) differs by less than `threshold` from that of the last computed step, relative L1,
    the other blocks are skipped and what they added then is added again.

    Args:
        threshold: change up to which blocks are skipped; 0 computes all
        order:     0 adds the last residual of the blocks; 1 continues the last two linearly, and so on
        first:     blocks that are always computed, in front, and whose change is measured
        last:      blocks that are always computed, at the end
        warm_up:   steps at the beginning that are all computed
        per_row:   each row of the batch (image, or half of the guidance) is decided on its own, see below

    Paper arXiv:2411.19108 has the idea; the rule is ParaAttention's First Block Cache, which diffusers ships as
    FirstBlockCacheConfig. Equal to theirs where theirs runs, for one image. Unlike theirs, SD3, Flux2 and pipelines
    that name no cache context are carried, and each row has a change of its own: without `per_row` all rows are
    computed where one changes, and theirs decides by the mean. A change equal to the threshold computes.

    Saves the blocks behind the first at skipped steps; costs one residual of each stream, two of the first block's, and
    a decision at every step that the host waits for. With `per_row`, rows are computed apart when at least half of them
    is skipped.

    Raises:
        ConfigError: a threshold or count below its least value.
        CapabilityError: at attach, a UNet or a transformer whose blocks are not known, or that has too few.
    """
    site = StackSite(first, last)
    policy, predictor = WhileBelow(threshold), Polynomial(order)
    return StepCache("first_block", site, policy, predictor, FirstBlockChange(), warm_up=warm_up, per_row=per_row)
