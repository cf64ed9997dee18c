"""Aligned steps: the published ones at ten, and log-linear between them elsewhere."""

from __future__ import annotations

import copy
import inspect

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import AysSchedules

from tests.tiny.pipelines import make_pipeline, tiny_pipeline
from vlm_eff import attach
from vlm_eff.core.errors import CapabilityError, ConfigError
from vlm_eff.diffusion import sampler
from vlm_eff.models.denoise.aligned import align, aligned_steps

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize(("family", "table"), [("sd", "StableDiffusion"), ("sdxl", "StableDiffusionXL")])
@pytest.mark.parametrize("solver", [None, "euler"])
def test_ten_steps_are_the_published_ones(family: str, table: str, solver: str | None) -> None:
    tiny = tiny_pipeline(family)
    with attach(tiny.pipe, sampler("ays", solver=solver)):
        tiny(10)
        assert tiny.pipe.scheduler.timesteps.tolist() == AysSchedules[f"{table}Timesteps"]
        tiny(4)
        assert len(tiny.pipe.scheduler.timesteps) == 4


@pytest.mark.parametrize("count", [4, 15, 25, 40])
def test_other_numbers_are_interpolated_in_the_log_of_the_noise(count: int) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(**SD)
    steps = aligned_steps(scheduler, "sd", count)
    assert len(steps) == count and steps == sorted(set(steps), reverse=True)
    kept = scheduler.alphas_cumprod.double()[steps]
    got = 0.5 * torch.log((1 - kept) / kept)
    known = np.log(AysSchedules["StableDiffusionSigmas"][:-1])
    want = np.interp(np.linspace(0, 9, count), np.arange(10), known)
    assert np.abs(got.numpy() - want).max() < 0.02


def test_too_many_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="fewer steps"):
        aligned_steps(diffusers.DPMSolverMultistepScheduler(**SD), "sdxl", 400)


def test_video_models_are_told_noise_levels() -> None:
    tiny = make_pipeline("sd")
    tiny.pipe.scheduler = diffusers.EulerDiscreteScheduler(
        **SD,
        prediction_type="v_prediction",
        sigma_max=700.0,
        sigma_min=0.002,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    with attach(tiny.pipe, sampler("ays", table="svd")):
        tiny(10)
        assert tiny.pipe.scheduler.sigmas.tolist() == pytest.approx(AysSchedules["StableDiffusionVideoSigmas"])
    for other in (sampler("unipc"), sampler("ays", table="svd", solver="dpmpp_2m")):
        with pytest.raises(CapabilityError):
            attach(tiny.pipe, other)


@pytest.mark.parametrize("solver", ["ddim", "unipc", "pndm", "dpmpp_2m_karras"])
def test_solvers_that_take_no_steps_are_refused(solver: str) -> None:
    with pytest.raises(CapabilityError, match="Accepted"):
        attach(tiny_pipeline("sd").pipe, sampler("ays", solver=solver))


def test_models_without_a_table_are_refused() -> None:
    tiny = tiny_pipeline("pixart")
    with pytest.raises(CapabilityError, match="none are known"):
        attach(tiny.pipe, sampler("ays"))
    with attach(tiny.pipe, sampler("ays", table="sd")):
        tiny(3)


def test_the_user_may_pass_steps_and_copies_are_their_own() -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(**SD)
    before = inspect.signature(scheduler.set_timesteps)
    align(scheduler, "sd")
    assert inspect.signature(scheduler.set_timesteps) == before
    scheduler.set_timesteps(timesteps=[900, 500, 100])
    assert scheduler.timesteps.tolist() == [900, 500, 100]
    other = copy.deepcopy(scheduler)
    other.set_timesteps(10, "cpu")
    assert other.timesteps.tolist() == AysSchedules["StableDiffusionTimesteps"]
    assert scheduler.timesteps.tolist() == [900, 500, 100]


def test_a_copy_of_an_attached_scheduler_has_steps_of_its_own() -> None:
    tiny = tiny_pipeline("sd")
    with attach(tiny.pipe, sampler("ays")):
        tiny(4)
        other = copy.deepcopy(tiny.pipe.scheduler)
        other.set_timesteps(10)
        assert len(other.timesteps) == 10 and len(tiny.pipe.scheduler.timesteps) == 4
