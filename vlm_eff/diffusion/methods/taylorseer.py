"""TaylorSeer."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.denoise import ModuleSite
from vlm_eff.core.registry import method
from vlm_eff.diffusion.policies import Every, check_count
from vlm_eff.diffusion.predictors import AXES, Axis, Polynomial
from vlm_eff.diffusion.step_cache import StepCache
from vlm_eff.diffusion.taylor import Taylor
from vlm_eff.importance.keep import check_choice


@method(room="diffusion", acts="attention and MLPs of blocks", paper="arXiv:2503.06923")
def taylorseer(
    interval: int = 4,
    max_order: int = 1,
    warm_up: int = 3,
    axis: Axis = "index",
    differences: Literal["finite", "divided"] = "finite",
    kinds: tuple[str, ...] | None = None,
    blocks: tuple[int, ...] | None = None,
) -> StepCache:
    """Computes attention and MLPs at every few steps and expands what they returned into a Taylor series in between.

    Args:
        interval:    steps from one computed step to the next, counted from the last one of the warm-up; 1 computes all
        max_order:   of the series; the paper uses up to 4 on DiT, diffusers 1
        warm_up:     steps at the beginning that are all computed, at least 1
        axis:        what the series is in: "index" of the step as published, or "sigma" or "log_snr", for steps of
                     uneven size
        differences: "finite" as published, exact on what is linear in the step; "divided" goes through all outputs that
                     are known and is exact up to degree `max_order`. Other axes than "index" are always divided
        kinds:       of "self", "cross", "temporal" and "mlp" those that are predicted; None for all that there are
        blocks:      0-based numbers of the blocks, in the order in which they run; None for all

    Paper arXiv:2503.06923, section 3.2. Official code keeps differences, we keep the outputs that they are taken of, in
    their own type; diffusers rounds its differences to bfloat16 by default.

    Saves attention and MLPs at predicted steps; keeps `max_order` + 1 outputs of each, which is much on large models:
    the report says how many bytes. forecast() keeps as many outputs of the whole denoiser.

    Raises:
        ConfigError: a count below its least value, an unknown axis, kind or way to take differences.
        CapabilityError: at attach, where the denoiser lacks a kind that is named, or a block.
    """
    check_count("warm_up", warm_up, 1)
    check_choice("axis", axis, AXES)
    check_choice("differences", differences, ("finite", "divided"))
    site = ModuleSite(blocks=blocks) if kinds is None else ModuleSite(kinds, kinds, blocks)
    published = axis == "index" and differences == "finite"
    predictor = Taylor(max_order) if published else Polynomial(max_order, axis)
    return StepCache("taylorseer", site, Every(interval, warm_up - 1), predictor, warm_up=warm_up)
