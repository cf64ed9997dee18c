"""The self-test of schedulers: right combinations pass, wrong ones are far off, and it leaves no trace."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from tests.tiny.pipelines import tiny_pipeline
from vlm_eff.models.denoise import oracle
from vlm_eff.models.denoise.oracle import FEW_OFF, OFF, STRAIGHT_OFF, data_for, distance, straight_distance
from vlm_eff.models.denoise.scheduling import Asking, build_scheduler, continuous, prediction_of, read_asking

PREDICTIONS = ("epsilon", "v_prediction", "sample")
SOLVERS: dict[str, dict[str, Any]] = {
    "DDIM": {},
    "DPMSolverMultistep": {},
    "UniPCMultistep": {"use_karras_sigmas": True},
    "EulerDiscrete": {},
    "EulerAncestralDiscrete": {},
}


def old(predicts: str) -> Any:
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=predicts,
        clip_sample=False,
    )


def off(scheduler: Any, name: str, config: dict[str, Any], truth: str, **model: Any) -> float:
    def build() -> Any:
        return build_scheduler(scheduler, f"{name}Scheduler", config)

    levels = getattr(scheduler, "alphas_cumprod", None)
    return distance(build, Asking(), data_for(build(), truth, levels, consistent=model.get("consistent", False)))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("truth", PREDICTIONS)
def test_only_the_right_prediction_passes(name: str, truth: str) -> None:
    for told in PREDICTIONS:
        if (name, told) == ("EulerAncestralDiscrete", "sample"):
            continue
        far = off(old(told), name, SOLVERS[name], truth)
        assert (far < OFF / 2) if told == truth else (far > 2 * OFF)


def test_solvers_of_higher_order_come_closer() -> None:
    assert off(old("epsilon"), "DPMSolverMultistep", {}, "epsilon") < off(old("epsilon"), "DDIM", {}, "epsilon") / 3


def test_clipping_is_noticed_where_data_are_wide() -> None:
    wide = old("epsilon")
    clips = build_scheduler(wide, "DDIMScheduler", {"clip_sample": True})
    model = data_for(wide, "epsilon", wide.alphas_cumprod, consistent=False)
    assert distance(lambda: build_scheduler(wide, "DDIMScheduler", {"clip_sample": True}), Asking(), model) > OFF
    # and left alone where the model was trained with it
    narrow = data_for(clips, "epsilon", wide.alphas_cumprod, consistent=False)
    assert distance(lambda: build_scheduler(clips, "DDIMScheduler", {}), Asking(), narrow) < OFF


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "UniPCMultistep", "DPMSolverMultistep"]
)
def test_flow_solvers_follow_a_straight_path(name: str, shift: float) -> None:
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    assert straight_distance(lambda: build_scheduler(flow, f"{name}Scheduler", {}), Asking()) < STRAIGHT_OFF / 2
    assert off(flow, name, {}, "flow") < OFF / 2


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
def test_flow_solvers_that_do_not() -> None:
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    deis = straight_distance(lambda: build_scheduler(flow, "DEISMultistepScheduler", {}), Asking())
    naive = straight_distance(lambda: diffusers.DPMSolverMultistepScheduler.from_config(dict(flow.config)), Asking())
    assert deis > 5 * STRAIGHT_OFF and naive > 5 * STRAIGHT_OFF


def test_distilled_samplers() -> None:
    assert off(old("epsilon"), "LCM", {}, "epsilon", consistent=True) < FEW_OFF
    assert off(old("v_prediction"), "LCM", {}, "epsilon", consistent=True) > FEW_OFF
    assert off(old("epsilon"), "TCD", {}, "epsilon") < OFF < off(old("v_prediction"), "TCD", {}, "epsilon")


def test_it_draws_nothing_from_the_users_generator() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    off(old("epsilon"), "EulerAncestralDiscrete", {}, "epsilon")
    assert torch.equal(before, torch.get_rng_state())


def test_an_oracle_that_forgets_the_noise_goes_red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle.Model, "signal", lambda self, time: (0.5, 0.5))
    assert off(old("epsilon"), "DDIM", {}, "epsilon") > OFF


def test_what_models_predict() -> None:
    assert [prediction_of(old(name)) for name in PREDICTIONS] == list(PREDICTIONS)
    assert prediction_of(diffusers.FlowMatchEulerDiscreteScheduler()) == "flow"
    assert prediction_of(diffusers.EDMEulerScheduler()) == "unknown"
    assert continuous(diffusers.EulerDiscreteScheduler(timestep_type="continuous"))
    assert not continuous(diffusers.EulerDiscreteScheduler())


def test_how_pipelines_announce_their_steps() -> None:
    asked = {family: read_asking(tiny_pipeline(family).pipe) for family in ("sd", "dit", "sd3", "flux", "wan")}
    assert {family: (a.sigmas, a.spared, a.mu) for family, a in asked.items()} == {
        "sd": (False, False, "never"),
        "dit": (False, False, "never"),
        "sd3": (False, False, "dynamic"),
        "flux": (True, True, "always"),
        "wan": (False, False, "never"),
    }
    assert "set_begin_index" in asked["wan"].methods and "sigmas" in asked["wan"].methods
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    assert set(asked["flux"].keywords(flow, 4)) == {"sigmas", "mu"}
    assert set(asked["sd3"].keywords(flow, 4)) == {"num_inference_steps"}
    spared = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True)
    assert set(asked["flux"].keywords(spared, 4)) == {"num_inference_steps", "mu"}
