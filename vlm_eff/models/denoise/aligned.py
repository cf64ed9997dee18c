"""Steps aligned to a model (AYS): a scheduler that is asked for a number of steps takes them from a table."""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any

import numpy as np

from vlm_eff.core.errors import CapabilityError, ConfigError, explain

# table -> names in diffusers' `AysSchedules`; a video model is told noise levels, not steps of its training
_TABLES: dict[str, tuple[str | None, str]] = {
    "sd": ("StableDiffusionTimesteps", "StableDiffusionSigmas"),
    "sdxl": ("StableDiffusionXLTimesteps", "StableDiffusionXLSigmas"),
    "svd": (None, "StableDiffusionVideoSigmas"),
}


def align(scheduler: Any, table: str) -> None:
    """Let `set_timesteps` of this instance take the table's steps where it is given nothing but their number.

    Other numbers than the table's 10 are interpolated log-linearly in the noise level (AYS, section 5). What the user
    passes of their own stays.

    Raises:
        CapabilityError: its class takes no steps from outside.
    """
    taken, names = type(scheduler).set_timesteps, _TABLES[table]
    keyword = "timesteps" if names[0] else "sigmas"

    if keyword not in inspect.signature(taken).parameters:
        raise CapabilityError(
            explain(
                f"{type(scheduler).__name__} takes no {keyword} from outside, which aligned steps are",
                "DPMSolverMultistepScheduler, EulerDiscreteScheduler and HeunDiscreteScheduler; for video models Euler",
                'Use sampler("ays"), or sampler("ays", solver="euler")',
            )
        )

    @functools.wraps(taken)
    def set_timesteps(self: Any, num_inference_steps: Any = None, *args: Any, **kwargs: Any) -> Any:
        if num_inference_steps is None or len(args) > 1 or {"timesteps", "sigmas"} & kwargs.keys():
            return taken(self, num_inference_steps, *args, **kwargs)
        steps = aligned_steps(self, table, int(num_inference_steps))
        return taken(self, *([None, *args] if args else []), **({keyword: steps} | kwargs))

    # a method, not a function: a copy of the scheduler then has it bound to itself
    scheduler.set_timesteps = types.MethodType(set_timesteps, scheduler)


def aligned_steps(scheduler: Any, table: str, count: int) -> list[float]:
    """`count` steps from a table: training steps, or noise levels with the final zero for a video model."""
    from diffusers.schedulers import AysSchedules

    known: dict[str, list[float]] = AysSchedules
    times, sigmas = ([] if name is None else known[name] for name in _TABLES[table])
    levels = np.log(np.array(sigmas[:-1]))
    places = np.linspace(0, len(levels) - 1, count)
    wanted = np.interp(places, np.arange(len(levels)), levels)
    if not times:
        return [*(float(level) for level in np.exp(wanted)), 0.0]
    if count == len(times):
        return [int(time) for time in times]
    kept = scheduler.alphas_cumprod.double().numpy()
    found = np.interp(wanted, 0.5 * np.log((1 - kept) / kept), np.arange(len(kept))).round().astype(int)
    if len(set(found.tolist())) < count:
        raise ConfigError(
            explain(f"{count} aligned steps, some of which are the same", "up to about 50", "Take fewer steps")
        )
    return [int(time) for time in found]
