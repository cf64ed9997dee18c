"""FORA."""

from __future__ import annotations

from vlm_eff.core.denoise import ModuleSite
from vlm_eff.core.registry import method
from vlm_eff.diffusion.policies import Every
from vlm_eff.diffusion.predictors import Reuse
from vlm_eff.diffusion.step_cache import StepCache


@method(room="diffusion", acts="attention and MLPs of blocks", paper="arXiv:2407.01425")
def fora(interval: int = 3, kinds: tuple[str, ...] | None = None, blocks: tuple[int, ...] | None = None) -> StepCache:
    """Computes attention and MLPs at every few steps and reuses what they returned in between.

    What is reused are their outputs before the gates of the block, which are computed at every step, as are
    normalisation and everything outside of blocks.

    Args:
        interval: compute every `interval`-th step; 1 computes all
        kinds:    of "self", "cross", "temporal" and "mlp" those that are reused; None for all that the denoiser has
        blocks:   0-based numbers of the blocks, in the order in which they run; None for all

    Paper arXiv:2407.01425, section 3.2, on DiT; here also on UNets, joint attention and video. Guidance branches are
    never mixed, whether they are called in one batch or one after the other.

    Saves attention and MLPs at reuse steps; keeps the last output of each of them, which is much on large models: the
    report says how many bytes. forecast() keeps one or two outputs of the whole denoiser.

    Raises:
        ConfigError: an interval below 1, or an unknown kind.
        CapabilityError: at attach, where the denoiser lacks a kind that is named, or a block.
    """
    site = ModuleSite(blocks=blocks) if kinds is None else ModuleSite(kinds, kinds, blocks)
    return StepCache("fora", site, Every(interval), Reuse())
