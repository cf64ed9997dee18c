"""Arms that are calibrated on the model first, on other noise than the pictures that are judged."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import vlm_eff
from vlm_eff.diffusion import deepcache, forecast
from vlm_eff.diffusion.policies import even_steps
from vlm_eff.diffusion.step_cache import StepCache
from vlm_eff.eval.step_schedules import calibrate_schedule
from vlm_eff.reference.diffusion import class_prompts

from .arms import STEPS, Arm

SEED, GUIDANCE = 1001, 1.5
METHODS = {"deepcache": deepcache, "forecast": forecast}


def calls(pipe: Any) -> list[dict[str, Any]]:
    """One call of every class, on the latents' own scale."""
    classes = range(10)
    asked = {"class_labels": list(classes)} if hasattr(pipe, "transformer") else class_prompts(classes)
    given = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
    return [{**asked, **given, "seed": SEED}]


@functools.cache
def _steps(name: str, pipe: Any, evaluations: int) -> tuple[int, ...]:
    found = calibrate_schedule(pipe, METHODS[name](), calls(pipe), evaluations=evaluations)
    return found.steps


def _made(name: str, steps: tuple[int, ...]) -> StepCache:
    return METHODS[name](schedule=steps)


def scheduled(name: str, evaluations: int) -> list[Arm]:
    """A method at even steps, and at as many calibrated ones."""

    @contextmanager
    def at_even(pipe: Any) -> Iterator[None]:
        with vlm_eff.attach(pipe, _made(name, tuple(sorted(even_steps(STEPS, evaluations))))):
            yield

    @contextmanager
    def at_calibrated(pipe: Any) -> Iterator[None]:
        with vlm_eff.attach(pipe, _made(name, _steps(name, pipe, evaluations))):
            yield

    return [
        Arm(f"{name}, {evaluations} even steps", "ours", at_even),
        Arm(f"{name}, {evaluations} calibrated steps", "ours", at_calibrated),
    ]
