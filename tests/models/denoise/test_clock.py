"""Steps of a run are the scheduler's own, whatever it does."""

from __future__ import annotations

import copy
import inspect
import math

import diffusers
import pytest
import torch

from vlm_eff.models.denoise.clock import Clock, is_flow, log_snr


def ticking(scheduler: object) -> tuple[Clock, list[str]]:
    heard: list[str] = []
    clock = Clock(lambda: heard.append("began"), lambda: heard.append("ended"))
    clock.watch(scheduler)
    return clock, heard


def run(scheduler: object, clock: Clock, steps: int) -> list[int]:
    scheduler.set_timesteps(steps)
    sample, seen = torch.zeros(1, 1, 2, 2), []
    for t in scheduler.timesteps:
        now = clock.now(t)
        assert now.timestep == pytest.approx(float(t))
        seen.append(now.index)
        sample = scheduler.step(torch.zeros_like(sample), t, sample).prev_sample
    return seen


@pytest.mark.parametrize("name", ["DDIM", "PNDM", "DPMSolverMultistep", "UniPCMultistep", "HeunDiscrete"])
def test_every_evaluation_is_a_step(name: str) -> None:
    scheduler = getattr(diffusers, f"{name}Scheduler")()
    clock, heard = ticking(scheduler)
    for steps in (6, 4):
        seen = run(scheduler, clock, steps)
        # PNDM repeats a timestep, and Heun evaluates twice a step
        assert seen == list(range(len(scheduler.timesteps))) and len(seen) >= steps
    assert heard == ["began", "ended"] * 2


def test_signatures_stay() -> None:
    scheduler = diffusers.EulerAncestralDiscreteScheduler()
    before = {name: inspect.signature(getattr(scheduler, name)) for name in ("set_timesteps", "step")}
    clock, _ = ticking(scheduler)
    assert before == {name: inspect.signature(getattr(scheduler, name)) for name in before}
    clock.release()
    assert not {"set_timesteps", "step"} & vars(scheduler).keys()


def test_a_copy_of_the_scheduler_steps_alone() -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler()
    clock, heard = ticking(scheduler)
    scheduler.set_timesteps(5)
    other = copy.deepcopy(scheduler)
    other.set_timesteps(3)
    sample = torch.ones(1, 1, 2, 2)
    other.step(sample, other.timesteps[0], sample)
    assert len(scheduler.timesteps) == 5 and clock.index == 0 and heard == ["began"]
    assert scheduler.model_outputs == [None, None] and other.model_outputs[-1] is not None


def test_two_clocks_leave_in_any_order() -> None:
    scheduler = diffusers.DDIMScheduler()
    first, heard = ticking(scheduler)
    second, other = ticking(scheduler)
    first.release()
    scheduler.set_timesteps(3)
    assert heard == [] and other == ["began"]
    second.release()
    assert "step" not in vars(scheduler)


@pytest.mark.parametrize("name", ["DDIM", "EulerDiscrete", "FlowMatchEulerDiscrete"])
def test_a_run_may_begin_in_the_middle(name: str) -> None:
    scheduler = getattr(diffusers, f"{name}Scheduler")()
    clock, _ = ticking(scheduler)
    scheduler.set_timesteps(10)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(4)
    now = clock.now(scheduler.timesteps[4])
    assert (now.index, now.count) == (0, 6) and now.timestep == pytest.approx(float(scheduler.timesteps[4]))


def test_noise_levels() -> None:
    flow, curve = diffusers.FlowMatchEulerDiscreteScheduler(), diffusers.DDIMScheduler()
    assert is_flow(flow) and not is_flow(curve)
    assert is_flow(diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"))
    clock, _ = ticking(curve)
    curve.set_timesteps(4)
    now = clock.now(curve.timesteps[0])
    kept = float(curve.alphas_cumprod[curve.timesteps[0]])
    assert now.log_snr == pytest.approx(math.log(kept / (1 - kept)), abs=1e-4)
    assert log_snr(0.5, flow=True) == pytest.approx(0.0) and log_snr(1.0, flow=True) == -30
    levels = [clock._steps[i].log_snr for i in range(4)]
    assert levels == sorted(levels)
