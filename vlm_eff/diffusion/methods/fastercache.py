"""FasterCache."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.denoise import GuidanceSite, ModuleSite
from vlm_eff.core.registry import method
from vlm_eff.diffusion.broadcast import InBand, Rising
from vlm_eff.diffusion.guidance import EveryFrom, FrequencySplit
from vlm_eff.diffusion.predictors import Reuse
from vlm_eff.diffusion.step_cache import Predictor, StepCache
from vlm_eff.diffusion.together import Together
from vlm_eff.importance.keep import check_choice


@method(room="diffusion", acts="attention of blocks, half of the guidance", paper="arXiv:2410.19355")
def fastercache(
    interval: int = 2,
    start: float = 0.32,
    guidance_interval: int = 5,
    guidance_start: float = 0.36,
    split: Literal["none", "fft"] = "fft",
) -> Together:
    """Computes self attention and both halves of the guidance at every few steps, and continues what they did.

    Attention is the last output and a part of its change since the one before, a part that rises from 0 to 1 through
    the run; the half of the guidance that is left out is the other half and their last difference, as in cfg_cache().

    Args:
        interval:          self and temporal attention every `interval`-th step; 1 computes all
        start:             share of the run's steps from which attention is reused
        guidance_interval: both halves of the guidance every so many steps; 1 computes all
        guidance_start:    share of the run's steps up to which both are computed
        split:             "fft" weights low and high frequencies of the difference as published, which packed latents
                           (Flux) do not let; "none" takes it as it is

    Paper arXiv:2410.19355, sections 3.2 and 3.3, with the settings of diffusers: its timesteps 681 and 641 as shares
    of the run; the weight rises as in the paper, where diffusers has 0.5. What was never computed is never
    reused, also in runs that begin inside the band. Where the batch changes between whole and half, attention is
    computed again, so that the halves are never mixed: at short guidance intervals little of it is left to reuse.

    Saves attention and half of the denoiser at these steps; keeps two outputs of each attention, which is much.

    Raises:
        ConfigError: a count below 1, a share outside of 0 to 1, or an unknown split.
        CapabilityError: at attach, where the denoiser has no attention in blocks; in the run, "fft" on packed latents.
    """
    check_choice("split", split, ("none", "fft"))
    bands: Predictor = FrequencySplit() if split == "fft" else Reuse()
    policy = InBand((("self", interval), ("temporal", interval)), start, 1.0)
    attention = StepCache("fastercache", ModuleSite(("self", "temporal")), policy, Rising(start, 1.0))
    guidance = EveryFrom(guidance_interval, guidance_start)
    halves = StepCache("fastercache", GuidanceSite(inside=True), guidance, bands, resource="GUIDANCE")
    return Together("fastercache", (attention, halves))
