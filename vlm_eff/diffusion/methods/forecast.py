"""Forecasts of the denoiser's output."""

from __future__ import annotations

from vlm_eff.core.denoise import DenoiserSite
from vlm_eff.core.registry import method
from vlm_eff.diffusion.policies import EvenSteps, Every
from vlm_eff.diffusion.predictors import Axis, Polynomial
from vlm_eff.diffusion.schedules import listed_or_saved
from vlm_eff.diffusion.signals import LatentChange
from vlm_eff.diffusion.step_cache import Policy, StepCache
from vlm_eff.diffusion.thresholds import BothPredict, WhileSumBelow


@method(room="diffusion", acts="the denoiser's output", paper="arXiv:2503.06923")
def forecast(
    interval: int = 2,
    evaluations: int | None = None,
    order: int = 1,
    axis: Axis = "index",
    warm_up: int = 1,
    schedule: str | tuple[int, ...] | None = None,
    guard: float | None = None,
    veto: float | None = None,
) -> StepCache:
    """Computes the denoiser at every few steps and continues its output by a polynomial in between.

    The whole output is forecast, so it works on every UNet and transformer and needs to know nothing of their blocks;
    the scheduler still takes all of its steps.

    Args:
        interval:    compute every `interval`-th step; 1 computes all
        evaluations: compute this many steps of each run instead, evenly spread (overrides `interval`)
        order:       degree of the polynomial: 0 reuses the last output, 1 is linear
        axis:        what it is a polynomial of: "index" of the step, "sigma" or "log_snr" (for uneven spacings)
        warm_up:     steps at the beginning that are all computed
        schedule:    the steps that are computed, 0-based, or a file "....json" that `calibrate_schedule` has written
                     (overrides both)
        guard:       for schedules of a file: compute all the same where the latents move this many times more or less
                     than in calibration, such as 1.5
        veto:        compute although the schedule would not, where the change that easycache expects from the latents
                     adds up to this; None asks nothing of the latents, and the host never waits

    Paper arXiv:2503.06923, section 3, which forecasts the features of every block. Here it is the output, and the
    polynomial goes through what was computed, also where steps are uneven.

    Saves all of the denoiser at forecast steps; costs `order` + 1 outputs of memory and as many multiply-adds. Fewer
    steps of a good solver are an honest rival: see docs/diffusion.md.

    Raises:
        ConfigError: a count below its least value, an unknown axis, or a guard without a file.
        InputError: a file that is no schedule.
    """
    policy: Policy = Every(interval) if evaluations is None else EvenSteps(evaluations)
    if schedule is not None or guard is not None:
        policy = listed_or_saved(() if schedule is None else schedule, guard)
    signal = None if veto is None else LatentChange()
    if veto is not None:
        policy = BothPredict(policy, WhileSumBelow(veto))
    return StepCache("forecast", DenoiserSite(), policy, Polynomial(order, axis), signal, warm_up=warm_up)
