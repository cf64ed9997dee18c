"""Arms that are calibrated on the model first, on other noise than the pictures that are judged."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import vlm_eff
from vlm_eff.diffusion import deepcache, forecast, magcache, teacache
from vlm_eff.diffusion.calibrate import calibrate_magcache, calibrate_teacache
from vlm_eff.diffusion.policies import even_steps
from vlm_eff.diffusion.step_cache import StepCache
from vlm_eff.eval.step_schedules import calibrate_schedule
from vlm_eff.reference.diffusion import class_prompts

from .arms import STEPS, Arm

SEED, GUIDANCE = 1001, 1.5
METHODS = {"deepcache": deepcache, "forecast": forecast}


def calls(pipe: Any) -> list[dict[str, Any]]:
    """Six calls of every class, as numbers; schedules hold the last two out of their search."""
    classes = range(10)
    asked = {"class_labels": list(classes)} if hasattr(pipe, "transformer") else class_prompts(classes)
    given = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
    return [{**asked, **given, "seed": SEED + number} for number in range(6)]


@functools.cache
def _steps(name: str, pipe: Any, evaluations: int) -> tuple[int, ...]:
    found = calibrate_schedule(pipe, METHODS[name](), calls(pipe), evaluations=evaluations)
    return found.steps


def _made(name: str, steps: tuple[int, ...]) -> StepCache:
    return METHODS[name](schedule=steps)


@functools.cache
def _curve(pipe: Any) -> Any:
    return calibrate_teacache(pipe, *_generated(pipe))


@functools.cache
def _magnitudes(pipe: Any) -> Any:
    return calibrate_magcache(pipe, *_generated(pipe))


def _generated(pipe: Any) -> list[dict[str, Any]]:
    made = []
    for call in calls(pipe):
        named = {name: value for name, value in call.items() if name != "seed"}
        made.append({**named, "generator": torch.Generator().manual_seed(call["seed"])})
    return made


def by_change() -> list[Arm]:
    """TeaCache and MagCache, calibrated on this model."""
    tea = [
        Arm(
            f"teacache:threshold={value}, calibrated",
            "ours",
            lambda pipe, value=value: vlm_eff.attach(pipe, teacache(_curve(pipe), threshold=value)),
        )
        for value in (0.1, 0.25, 0.5)
    ]
    magnitudes = [
        Arm(
            f"magcache:threshold={value}, calibrated",
            "ours",
            lambda pipe, value=value: vlm_eff.attach(pipe, magcache(_magnitudes(pipe), threshold=value)),
        )
        for value in (0.06, 0.24)
    ]
    return tea + magnitudes


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
