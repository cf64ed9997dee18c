"""Another sampler on a pipeline."""

from __future__ import annotations

from typing import Any

from vlm_eff.core.registry import method
from vlm_eff.diffusion.samplers import Sampling


@method(room="diffusion", acts="the scheduler", paper="arXiv:2302.04867")
def sampler(
    name: str = "unipc",
    weights: str | None = None,
    solver: str | None = None,
    table: str | None = None,
    **options: Any,
) -> Sampling:
    """Puts another scheduler on the pipeline, checked against the model before the first image.

    The new scheduler is built with what the model was trained with (prediction type, noise levels, flow and its
    shift), announces its steps once as the pipeline would ask it to, and has to sample data with a known answer. The
    same old object goes back at detach, and while the handle is paused. How many steps are taken the call says;
    `steps_hint` in the notes of a run is what the sampler is meant for.

    Args:
        name:    "ddim", "pndm", "dpmpp_2m", "dpmpp_2m_karras", "dpmpp_3m", "dpmpp_sde", "unipc", "unipc_karras",
                 "euler", "heun" (two evaluations a step) and "ays" (aligned steps) for models that predict epsilon, v
                 or the sample; "flow_euler", "flow_heun", "flow_unipc", "flow_dpmpp" for flow matching; "lcm", "tcd",
                 "turbo", "lightning" for distilled weights; "present" for the pipeline's own with other `options`
        weights: what the weights are distilled for, where neither they nor their adapters are named so ("lcm")
        solver:  what takes aligned steps: "dpmpp_2m" (for SVD "euler") or "euler"
        table:   aligned steps of "sd", "sdxl" or "svd"; None takes those of the pipeline
        options: of the scheduler, over the preset's: `solver_order=3`

    Paper arXiv:2302.04867 (UniPC), the default; DPM-Solver++ arXiv:2211.01095, AYS arXiv:2404.14507, LCM
    arXiv:2310.04378, TCD arXiv:2402.19159. The solvers are those of diffusers. An epsilon model with a cosine schedule
    gets `lambda_min_clipped=-5.1` under DPM-Solver++, without which its first steps explode (in the notes).

    Saves what fewer steps save: 15 of UniPC stand for 50 of DDIM. Costs a self-test of some 0.1 s at attach.

    Raises:
        ConfigError: an unknown name, or options that the scheduler does not have.
        CapabilityError: a sampler that does not fit the model or the pipeline, or lacks its distilled weights.
    """
    return Sampling(name, weights, solver, table, tuple(sorted(options.items())))
