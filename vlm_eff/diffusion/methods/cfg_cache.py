"""Reuse of the difference that guidance makes."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.denoise import GuidanceSite
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.registry import method
from vlm_eff.diffusion.guidance import EveryFrom, FrequencySplit
from vlm_eff.diffusion.predictors import Polynomial, Reuse
from vlm_eff.diffusion.step_cache import Predictor, StepCache
from vlm_eff.importance.keep import check_choice


@method(room="diffusion", acts="half of the guidance", paper="arXiv:2410.19355")
def cfg_cache(
    interval: int = 5,
    start: float = 0.3,
    order: int = 0,
    split: Literal["none", "fft"] = "none",
    low: float = 1.1,
    high: float = 1.1,
) -> StepCache:
    """Computes both halves of the guidance at every few steps, and one half plus the last difference in between.

    Works on any pipeline with classifier-free guidance, image or video, both halves in one batch in either order or
    in two calls a step. The conditional half is the one that is computed in a batch; of two calls it is the first.
    Other caches may be attached with it: forecasts go around it, caches of blocks lie inside and compute whenever
    the batch changes or a branch was left out, so that the two halves are never mixed.

    Args:
        interval: both halves at every `interval`-th step, of those that a forecast around it computes; 1 computes all
        start:    fraction of the run up to which both are computed at every step
        order:    degree of the polynomial that continues the difference: 0 reuses it, 1 is linear
        split:    "fft" splits the difference into low and high frequencies and weights them as the paper does
        low:      factor of the low frequencies, once more at every step that reuses them, from 10 % to 90 % of the run
        high:     factor of the high ones, in the last 30 %

    Paper arXiv:2410.19355, section 3.3 (CFG-Cache), in the form of diffusers' FasterCache: its timesteps are fractions
    of the run here, the factors compound as there, and frequencies are split over height and width alone. The plain
    difference is the default: it needs no grid, and the factors were tuned on one kind of model.

    Saves half of the denoiser at these steps; costs `order` + 1 differences of memory. 30 % of 10 steps and every 5th
    behind them are 5 whole and 5 half evaluations. Whether a batch holds both halves is looked at twice a run, and
    which one is which once, with a wait for the device each; none at other steps. Where a run has no guidance, or it
    is distilled into the model, nothing is saved and the warning `NoGuidance` says so.

    Raises:
        ConfigError: a count, fraction or choice out of range, or `order` together with "fft".
        CapabilityError: "fft" where latents are packed into a sequence, as in Flux (at the first reuse).
    """
    check_choice("split", split, ("none", "fft"))
    if split == "fft" and order:
        raise ConfigError(explain(f'order={order} with split="fft"', "order=0 with it", "Choose one of the two"))
    predictor: Predictor = FrequencySplit(low, high) if split == "fft" else Polynomial(order) if order else Reuse()
    return StepCache("cfg_cache", GuidanceSite(inside=True), EveryFrom(interval, start), predictor, resource="GUIDANCE")
