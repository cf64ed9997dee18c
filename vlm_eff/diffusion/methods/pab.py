"""Pyramid attention broadcast."""

from __future__ import annotations

from vlm_eff.core.denoise import ModuleSite
from vlm_eff.core.registry import method
from vlm_eff.diffusion.broadcast import InBand
from vlm_eff.diffusion.predictors import Reuse
from vlm_eff.diffusion.step_cache import StepCache


@method(room="diffusion", acts="attention of blocks", paper="arXiv:2408.12588")
def pab(
    spatial: int = 2,
    temporal: int = 4,
    cross: int = 6,
    start: float = 0.2,
    stop: float = 0.9,
    faithful: bool = False,
) -> StepCache:
    """Computes attention at every few steps in the middle of the run, the rarer the less it changes, and reuses it.

    Args:
        spatial:  self attention, joint attention of text and image included, every `spatial`-th step; 1 computes all
        temporal: attention over time, likewise; models that have none go without
        cross:    cross attention, likewise
        start:    share of the run's steps from which attention is reused
        stop:     share of the run's steps up to which it is
        faithful: read the two shares as timesteps, as published: from 0.2 to 0.9 is between timesteps 800 and 100

    Paper arXiv:2408.12588, section 3.2 and the ranges of its code for Open-Sora-Plan, 2, 4 and 6. Published bands are
    timesteps; under shifted flow matching most steps lie at large ones, outside of the band, so shares of the steps
    are the default. Steps are those of the scheduler, never counted calls: with guidance in two calls a step, a
    counter gives one branch the attention of the other. Reuse of MLPs at single timesteps, which the
    paper has for Open-Sora alone, is not here.

    Saves attention at reuse steps; keeps the last output of each attention, which the report counts.

    Raises:
        ConfigError: an interval below 1, or a band outside of 0 to 1.
        CapabilityError: at attach, where the denoiser has no attention in blocks.
    """
    intervals = (("self", spatial), ("temporal", temporal), ("cross", cross))
    site = ModuleSite(("self", "cross", "temporal"))
    return StepCache("pab", site, InBand(intervals, start, stop, faithful), Reuse())
