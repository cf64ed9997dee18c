"""DeepCache: what comes up from the inside of a UNet changes slowly, and is used for several steps."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.denoise import DeepSite
from vlm_eff.core.registry import method
from vlm_eff.diffusion.policies import Every, QuadraticSteps
from vlm_eff.diffusion.predictors import Polynomial, Reuse
from vlm_eff.diffusion.schedules import listed_or_saved
from vlm_eff.diffusion.step_cache import Policy, StepCache
from vlm_eff.importance.keep import check_choice

Predicting = Literal["reuse", "linear"]


@method(room="diffusion", acts="the inside of a UNet", paper="arXiv:2312.00858")
def deepcache(
    interval: int = 3,
    branch: int = 0,
    schedule: str | tuple[int, ...] = "uniform",
    centre: float = 0.3,
    predict: Predicting = "reuse",
    guard: float | None = None,
) -> StepCache:
    """Computes the inside of a UNet at some steps and uses what came up from it at the steps in between.

    At the other steps only the input convolution, the layers down to skip connection `branch`, the layer on the way up
    that takes this connection and those behind it are computed.

    Args:
        interval: compute the inside at every `interval`-th step; 1 computes all
        branch:   skip connection below which the inside lies, 0-based from the input; deeper ones skip less and cost
                  less quality
        schedule: "uniform"; "quadratic", as many steps, denser around `centre`; the steps that are computed, 0-based;
                  or a file "....json" that `calibrate_schedule` has written
        centre:   of the quadratic schedule, as a share of the run
        predict:  "reuse" what came up last, or continue it by a "linear" forecast
        guard:    for schedules of a file: compute all the same where the latents move this many times more or less than
                  in calibration, such as 1.5

    Paper arXiv:2312.00858, sections 3.2 and 3.3, and the authors' code for UNets of diffusers, whose `cache_branch_id`
    is `branch` on models of two layers a block. Here it is right for any number of layers; the first step of each run
    is computed, wherever the run starts; steps are counted, not looked up by their timestep, which some solvers
    repeat; and of each guidance branch one tensor is kept. Forecasts are ours.

    Saves the inside of the UNet, at branch 0 of Stable Diffusion 1.5 about three quarters of a step; costs one tensor
    of the size of a layer's output (two for "linear") and a copy of it at each skipped step. Residuals of a ControlNet
    that enter the inside are ignored at skipped steps.

    Raises:
        CapabilityError: a transformer, or a UNet of unusual blocks (at attach).
        ConfigError: a count below its least value, an unknown schedule, or no such branch (at attach).
        InputError: a file that is no schedule.
    """
    check_choice("predict", predict, ("reuse", "linear"))
    predictor = Reuse() if predict == "reuse" else Polynomial(1)
    return StepCache("deepcache", DeepSite(branch), _policy(interval, schedule, centre, guard), predictor)


def _policy(interval: int, schedule: str | tuple[int, ...], centre: float, guard: float | None) -> Policy:
    if guard is not None or not isinstance(schedule, str) or schedule.endswith(".json"):
        return listed_or_saved(schedule, guard)
    check_choice("schedule", schedule, ("uniform", "quadratic"))
    return Every(interval) if schedule == "uniform" else QuadraticSteps(interval, centre)
