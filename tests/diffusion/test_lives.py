"""What users do to a pipeline while plugins are attached, and what cannot be attached."""

from __future__ import annotations

import copy
import functools
from typing import Any

import diffusers
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor

from tests.diffusion.checks import relative
from tests.tiny import tiny_vlm
from tests.tiny.pipelines import TinyPipeline, make_pipeline, tiny_pipeline, with_scheduler
from tests.tiny.transformers import other_pipeline
from vlm_eff import attach
from vlm_eff.core.errors import CapabilityError, CompiledModelError, ConflictError, UnsupportedModelError
from vlm_eff.diffusion import deepcache, forecast
from vlm_eff.tokens import fastv

HALF = forecast(interval=2)


class Counts(ModelHook):
    """As accelerate's offloading wraps the forward of a module, and does nothing."""

    def __init__(self) -> None:
        self.calls = 0

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return args, kwargs


def image_to_image() -> TinyPipeline:
    made = make_pipeline("sd")
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**made.pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return TinyPipeline("sd", pipe, {**made.call, "image": torch.zeros(1, 3, 16, 16)}, {})


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_runs_that_start_from_an_image_begin_at_step_0(family: str) -> None:
    tiny = image_to_image() if family == "sd" else other_pipeline("flux_image")
    with attach(tiny.pipe, forecast(interval=2)) as handle:
        first = tiny(8, strength=0.5)
        tiny(8, strength=1.0)
        assert torch.equal(tiny(8, strength=0.5), first)
    half, whole, _ = handle.stats().runs
    assert (half.steps, half.computed_steps) == (4, [0, 2])
    assert (whole.steps, whole.computed_steps) == (8, [0, 2, 4, 6])
    assert [call.step for call in half.calls] == list(range(4))


@pytest.mark.parametrize("family", ["sd", "flux", "wan"])
def test_runs_of_other_lengths_sizes_and_guidance_follow_one_another(family: str) -> None:
    tiny = tiny_pipeline(family)
    more = {"height": 32, "width": 16} if family == "wan" else {"height": 24, "width": 16}
    lives: tuple[tuple[int, dict[str, Any]], ...] = ((6, {}), (3, {}), (5, {"guided": False}), (6, more), (6, {}))

    def alone(steps: int, call: dict[str, Any]) -> Tensor:
        with attach(tiny.pipe, HALF):
            return tiny(steps, **call)

    want = [alone(*life) for life in lives]
    with attach(tiny.pipe, HALF) as handle:
        for (steps, call), expected in zip(lives, want, strict=True):
            assert torch.equal(tiny(steps, **call), expected)
    assert [run.steps for run in handle.stats().runs] == [6, 3, 5, 6, 6]
    assert sum(run.mismatches for run in handle.stats().runs) == 0


def test_another_scheduler_while_attached() -> None:
    tiny = make_pipeline("sd")
    old, other = tiny.pipe.scheduler, with_scheduler(tiny, "DPMSolverMultistep")
    with attach(other.pipe, HALF):
        want = other(6)
    with attach(tiny.pipe, HALF) as handle:
        first = tiny(6)
        tiny.pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(old.config)
        assert relative(tiny(6), want) < 1e-6
        assert not {"step", "set_timesteps"} & vars(old).keys()
        new, tiny.pipe.scheduler = tiny.pipe.scheduler, old
        assert torch.equal(tiny(6), first)
    assert [run.scheduler for run in handle.stats().runs] == [
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "DDIMScheduler",
    ]
    assert all(run.computed_steps == [0, 2, 4] for run in handle.stats().runs)
    assert not {"step", "set_timesteps"} & (vars(old).keys() | vars(new).keys())


def test_two_pipelines_share_one_scheduler() -> None:
    one, other = make_pipeline("sd"), make_pipeline("sd")
    with torch.no_grad():
        for parameter in other.denoiser.parameters():
            parameter.mul_(1.1)
    scheduler = other.pipe.scheduler = one.pipe.scheduler
    with attach(one.pipe, HALF):
        want = one(6)
    bare = other(6)
    handle = attach(one.pipe, HALF)
    assert torch.equal(other(6), bare)
    with attach(other.pipe, deepcache(interval=2)) as second:
        cached = other(6)
        assert torch.equal(one(6), want) and torch.equal(other(6), cached)
    assert [len(run.calls) for run in second.stats().runs] == [6, 6]
    assert torch.equal(one(6), want)
    handle.detach()
    assert [len(run.calls) for run in handle.stats().runs] == [6, 6]
    assert torch.equal(other(6), bare) and not {"step", "set_timesteps"} & vars(scheduler).keys()


def two_experts() -> TinyPipeline:
    """As Wan 2.2: one transformer for the noisy half of the run, another one for the rest."""
    first, second = make_pipeline("wan"), make_pipeline("wan")
    with torch.no_grad():
        for parameter in second.denoiser.parameters():
            parameter.mul_(0.9)
    parts = {**first.pipe.components, "transformer_2": second.denoiser}
    pipe = diffusers.WanPipeline(**parts, boundary_ratio=0.5)
    pipe.set_progress_bar_config(disable=True)
    return TinyPipeline("wan", pipe, first.call, first.unguided)


def test_two_transformers_keep_what_is_theirs() -> None:
    tiny = two_experts()
    bare = tiny(8)
    with attach(tiny.pipe, forecast(interval=1)):
        assert torch.equal(tiny(8), bare)
    with attach(tiny.pipe, forecast(interval=3)) as handle:
        got = tiny(8)
    run = handle.stats().runs[-1]
    used = {call.step: call.denoiser for call in run.calls}
    change = min(step for step, name in used.items() if name == "transformer_2")
    assert 0 < change < 7 and len(run.calls) == 16
    # a forecast never continues the other one's outputs
    assert run.computed_steps == sorted({0, 3, 6, change})
    assert 0 < relative(got, bare) < 1
    assert torch.equal(tiny(8), bare)


@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_of_accelerate(when: str) -> None:
    tiny, hook = make_pipeline("sd"), Counts()
    bare = tiny(4)
    with attach(tiny.pipe, HALF):
        want = tiny(4)
    if when == "before":
        add_hook_to_module(tiny.denoiser, hook)
    handle = attach(tiny.pipe, HALF)
    if when == "after":
        add_hook_to_module(tiny.denoiser, hook)
    assert torch.equal(tiny(4), want)
    # inside the forecast it is called where the denoiser is; around it at every step
    assert hook.calls == {"before": 2, "after": 4}[when]
    handle.detach()
    hook.calls = 0
    assert torch.equal(tiny(4), bare) and hook.calls == 4
    remove_hook_from_module(tiny.denoiser)
    assert torch.equal(tiny(4), bare) and hook.calls == 4


@pytest.mark.parametrize("again", [True, False])
def test_offloading_takes_its_hooks_off_behind_every_run(again: bool) -> None:
    tiny, hook = make_pipeline("sd"), Counts()
    bare = tiny(4)
    with attach(tiny.pipe, HALF):
        want = tiny(4)
    add_hook_to_module(tiny.denoiser, hook)
    with attach(tiny.pipe, HALF) as handle:
        for _ in range(3):
            assert torch.equal(tiny(4), want)
            remove_hook_from_module(tiny.denoiser)
            if again:
                add_hook_to_module(tiny.denoiser, hook)
    assert handle.stats().runs[-1].computed_steps == [0, 2]
    hook.calls = 0
    assert torch.equal(tiny(4), bare) and hook.calls == (4 if again else 0)


def test_switches_of_the_pipeline() -> None:
    tiny = make_pipeline("sd")
    with attach(tiny.pipe, HALF):
        want = tiny(4)
        tiny.pipe.enable_attention_slicing(1)
        assert relative(tiny(4), want) < 1e-5
        tiny.pipe.disable_attention_slicing()
        assert relative(tiny(4), want) < 1e-5


def test_a_copied_scheduler_is_its_own() -> None:
    tiny = make_pipeline("sd")
    with attach(tiny.pipe, HALF) as handle:
        want = tiny(4)
        copied = copy.deepcopy(tiny.pipe.scheduler)
        copied.set_timesteps(9)
        assert len(tiny.pipe.scheduler.timesteps) == 4
        assert [len(run.calls) for run in handle.stats().runs] == [4]
        # the copy has what listens to the first one on it: a step is a step all the same
        tiny.pipe.scheduler = copied
        assert torch.equal(tiny(4), want)
    assert handle.stats().runs[-1].computed_steps == [0, 2]
    assert torch.equal(tiny(4), tiny_pipeline("sd")(4))


def test_whoever_wraps_the_scheduler_while_attached_stays() -> None:
    tiny, steps = make_pipeline("sd"), []
    bare = tiny(4)
    handle = attach(tiny.pipe, HALF)
    want, inside = tiny(4), tiny.pipe.scheduler.step

    @functools.wraps(inside)
    def step(*args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        return inside(*args, **kwargs)

    tiny.pipe.scheduler.step = step
    assert torch.equal(tiny(4), want)
    handle.detach()
    assert torch.equal(tiny(4), bare) and len(steps) == 8
    with attach(tiny.pipe, HALF) as handle:
        assert torch.equal(tiny(4), want)
    assert handle.stats().runs[-1].computed_steps == [0, 2]
    assert tiny.pipe.scheduler.step is step and torch.equal(tiny(4), bare)


def test_a_denoiser_without_its_pipeline_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="pipeline"):
        attach(make_pipeline("sd").denoiser, forecast())


@pytest.mark.parametrize("how", ["whole", "in place", "a block"])
def test_compiled_denoisers_are_refused(how: str) -> None:
    tiny = make_pipeline("dit")
    if how == "whole":
        tiny.pipe.transformer = torch.compile(tiny.denoiser)
    elif how == "in place":
        tiny.denoiser.compile()
    else:
        tiny.pipe.transformer.transformer_blocks[1].compile()
    with pytest.raises(CompiledModelError, match="uncompiled"):
        attach(tiny.pipe, forecast())


def test_plugins_of_another_kind_of_model_are_refused() -> None:
    with pytest.raises(CapabilityError, match="diffusion pipeline"):
        attach(tiny_pipeline("sd").pipe, fastv())
    with pytest.raises(CapabilityError, match="no diffusers pipeline"):
        attach(tiny_vlm("llava"), forecast())


def test_a_second_handle_is_refused() -> None:
    tiny = tiny_pipeline("sd")
    with attach(tiny.pipe, HALF):
        want = tiny(4)
        with pytest.raises(ConflictError):
            attach(tiny.pipe, deepcache())
        assert torch.equal(tiny(4), want)
    with attach(tiny.pipe, deepcache(interval=2)):
        tiny(4)
