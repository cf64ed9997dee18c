"""Samplers by name: on pipelines that they fit they sample, from others they stay away."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

import vlm_eff
from tests.diffusion.checks import unchanged
from tests.tiny.pipelines import TinyPipeline, make_pipeline, tiny_pipeline
from vlm_eff import attach
from vlm_eff.core.config import from_dict
from vlm_eff.core.errors import CapabilityError, ConfigError
from vlm_eff.diffusion import forecast, sampler
from vlm_eff.diffusion.samplers import PRESETS
from vlm_eff.models.denoise import oracle

NOISE = tuple(name for name, preset in PRESETS.items() if "epsilon" in preset.predicts)
FLOW = tuple(name for name, preset in PRESETS.items() if "flow" in preset.predicts)
FITS = [("sd", name) for name in NOISE]
FITS += [
    ("sdxl", "ays"),
    ("sdxl", "unipc"),
    ("dit", "dpmpp_2m"),
    ("pixart", "ddim"),
    ("pixart", "euler"),
]
FITS += [(family, name) for family in ("sd3", "wan") for name in FLOW]
FITS += [("flux", "present"), ("flux", "flow_euler"), ("flux", "flow_unipc")]
STRANGERS = [("sd", "flow_unipc"), ("dit", "ays"), ("pixart", "flow_euler"), ("sd3", "unipc"), ("wan", "ddim")]
# which begins every run with noise of strength 1
STRANGERS += [("dit", "heun"), ("dit", "euler")]
# Flux gives its schedulers noise levels and a shift of its own, which these do not take
STRANGERS += [("flux", "flow_dpmpp"), ("flux", "flow_heun"), ("flux", "dpmpp_2m")]


def told(name: str, **options: Any) -> Any:
    """The sampler, with what it wants to be told of the weights."""
    weights = PRESETS[name].weights
    return sampler(name, weights=weights[0] if weights else None, **options)


def with_config(family: str, scheduler: Any) -> TinyPipeline:
    made = make_pipeline(family)
    made.pipe.scheduler = scheduler
    return made


@pytest.mark.parametrize(("family", "name"), FITS)
def test_it_samples_where_it_fits(family: str, name: str) -> None:
    tiny, preset = tiny_pipeline(family), PRESETS[name]
    old, config = tiny.pipe.scheduler, dict(tiny.pipe.config)
    with attach(tiny.pipe, told(name)) as handle:
        assert tiny.pipe.scheduler is not old
        got = tiny(4)
    run = handle.stats().runs[-1]
    assert torch.isfinite(got).all()
    assert run.scheduler == (preset.scheduler or type(old).__name__)
    assert run.notes["scheduler"] == 1.0 and run.notes.get("steps_hint", 0.0) == preset.steps
    assert tiny.pipe.scheduler is old and dict(tiny.pipe.config) == config


@pytest.mark.parametrize(("family", "name"), STRANGERS)
def test_others_are_refused_and_the_pipeline_is_untouched(family: str, name: str) -> None:
    tiny = tiny_pipeline(family)
    with unchanged(tiny), pytest.raises(CapabilityError, match="Accepted"):
        attach(tiny.pipe, told(name))


@pytest.mark.parametrize(
    ("family", "name"), [("sd", "ddim"), ("sdxl", "euler"), ("sd3", "flow_euler"), ("wan", "flow_unipc")]
)
def test_the_present_one_by_name_is_bit_identical(family: str, name: str) -> None:
    tiny = tiny_pipeline(family)
    want = tiny(4)
    with attach(tiny.pipe, sampler(name)):
        assert torch.equal(tiny(4), want)


@pytest.mark.parametrize(
    ("family", "name", "cls"), [("sd", "dpmpp_2m", "DPMSolverMultistep"), ("wan", "flow_dpmpp", "DPMSolverMultistep")]
)
def test_it_is_the_scheduler_that_a_user_would_take(family: str, name: str, cls: str) -> None:
    tiny, other = tiny_pipeline(family), make_pipeline(family)
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"} if family == "wan" else {}
    with attach(tiny.pipe, sampler(name)):
        got = tiny(5)
    kind = getattr(diffusers, f"{cls}Scheduler")
    other.pipe.scheduler = kind(**(flow or {"steps_offset": 1}))
    assert torch.equal(other(5), got)


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "euler"])
def test_prediction_and_zero_snr_are_carried_over(name: str) -> None:
    old = diffusers.DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, clip_sample=False)
    tiny = with_config("sd", old)
    with attach(tiny.pipe, sampler(name)):
        config = tiny.pipe.scheduler.config
        assert config.prediction_type == "v_prediction" and config.rescale_betas_zero_snr
        assert torch.isfinite(tiny(4)).all()
    assert tiny.pipe.scheduler is old
    # these cannot begin at noise alone
    for other in ("pndm", "heun"):
        with pytest.raises(CapabilityError, match="noise in other amounts"):
            attach(tiny.pipe, sampler(other))


def test_noise_levels_are_those_of_the_model_not_of_the_class() -> None:
    # the class's own defaults are others
    tiny = tiny_pipeline("sd")
    with attach(tiny.pipe, sampler("heun")):
        assert torch.equal(tiny.pipe.scheduler.alphas_cumprod, diffusers.DDIMScheduler().alphas_cumprod)
        tiny(2)
    assert not torch.equal(diffusers.HeunDiscreteScheduler().alphas_cumprod, diffusers.DDIMScheduler().alphas_cumprod)


def test_a_flow_model_stays_one() -> None:
    tiny = with_config("sd3", diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    with attach(tiny.pipe, sampler("flow_dpmpp")):
        config = tiny.pipe.scheduler.config
        assert config.use_flow_sigmas and config.prediction_type == "flow_prediction" and config.flow_shift == 3.0
        tiny(2)
    naive = diffusers.DPMSolverMultistepScheduler.from_config(tiny.pipe.scheduler.config)
    assert not naive.config.use_flow_sigmas and naive.config.prediction_type == "epsilon"


def test_dynamic_shift_reaches_the_new_scheduler() -> None:
    tiny = with_config("flux", diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    with attach(tiny.pipe, sampler("flow_unipc")):
        assert tiny.pipe.scheduler.config.use_dynamic_shifting
        assert torch.isfinite(tiny(4)).all()


def test_the_cosine_schedule_is_clipped_and_it_says_so() -> None:
    tiny = with_config("sd", diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False))
    for plugin, clipped in ((sampler("dpmpp_2m"), -5.1), (sampler("dpmpp_2m", lambda_min_clipped=-4.0), -4.0)):
        with attach(tiny.pipe, plugin) as handle:
            assert tiny.pipe.scheduler.config.lambda_min_clipped == clipped
            tiny(4)
        assert ("lambda_min_clipped" in handle.stats().runs[-1].notes) == (clipped == -5.1)
    with pytest.raises(CapabilityError, match="fails on a model"):
        attach(tiny.pipe, sampler("dpmpp_2m_karras"))


def test_distilled_samplers_want_their_weights() -> None:
    tiny = make_pipeline("sd")
    for name in ("lcm", "tcd", "turbo", "lightning"):
        with pytest.raises(CapabilityError, match="distilled"):
            attach(tiny.pipe, sampler(name))
    with pytest.raises(CapabilityError, match="distilled"):
        attach(tiny.pipe, sampler("lcm", weights="turbo"))
    tiny.pipe.unet.register_to_config(_name_or_path="somebody/SDXL-Lightning-4step")
    with attach(tiny.pipe, sampler("lightning")):
        assert tiny.pipe.scheduler.config.timestep_spacing == "trailing"
        tiny(2)
    with pytest.raises(CapabilityError, match="distilled"):
        attach(tiny.pipe, sampler("lcm"))


def test_the_old_one_comes_back_after_an_error_and_in_pauses() -> None:
    tiny = make_pipeline("sd")
    old = tiny.pipe.scheduler
    with pytest.raises(ZeroDivisionError), attach(tiny.pipe, sampler("unipc")) as handle:
        with handle.paused():
            assert tiny.pipe.scheduler is old
        new = tiny.pipe.scheduler
        assert new is not old
        raise ZeroDivisionError
    assert tiny.pipe.scheduler is old
    assert not {"set_timesteps", "step"} & (vars(new).keys() | vars(old).keys())


def test_a_scheduler_that_the_user_chose_in_between_stays() -> None:
    tiny = make_pipeline("sd")
    mine = diffusers.PNDMScheduler()
    with attach(tiny.pipe, sampler("unipc")) as handle:
        tiny.pipe.scheduler = mine
        tiny(4)
        assert "scheduler" not in handle.stats().runs[-1].notes
    assert tiny.pipe.scheduler is mine


@pytest.mark.parametrize("order", [0, 1])
def test_a_forecast_follows_the_new_scheduler(order: int) -> None:
    tiny = tiny_pipeline("sd")
    plugins = (forecast(interval=2), sampler("heun"))
    with attach(tiny.pipe, *(plugins if order else reversed(plugins))) as handle:
        tiny(4)
    run = handle.stats().runs[-1]
    # two evaluations a step, but for the last
    assert run.scheduler == "HeunDiscreteScheduler" and run.steps == 7
    assert run.computed_steps == [0, 2, 4, 6] and run.evaluations == 4
    with attach(tiny.pipe, forecast(interval=1), sampler("heun")):
        both = tiny(4)
    with attach(tiny.pipe, sampler("heun")):
        assert torch.equal(tiny(4), both)


def test_pipelines_that_start_from_an_image() -> None:
    tiny = make_pipeline("sd")
    parts = {**tiny.pipe.components, "requires_safety_checker": False}
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    call = {**tiny.call, "image": torch.zeros(1, 3, 16, 16), "strength": 0.5, "output_type": "latent"}
    with attach(pipe, sampler("unipc"), forecast(interval=2)) as handle:
        made = pipe(num_inference_steps=8, generator=torch.Generator().manual_seed(0), **call)[0]
    run = handle.stats().runs[-1]
    assert torch.isfinite(made).all() and run.steps == 4 and run.computed_steps == [0, 2]


def test_flow_pipelines_that_start_from_an_image_need_scale_noise() -> None:
    tiny = make_pipeline("sd3")
    pipe = diffusers.StableDiffusion3Img2ImgPipeline(**tiny.pipe.components)
    with pytest.raises(CapabilityError, match="scale_noise"):
        attach(pipe, sampler("flow_unipc"))


def test_specs_and_dicts_come_back() -> None:
    plugin = vlm_eff.plugin("sampler:name=dpmpp_2m,solver_order=3,use_karras_sigmas=True")
    assert plugin == sampler("dpmpp_2m", use_karras_sigmas=True, solver_order=3)
    assert from_dict(plugin.to_dict()) == plugin
    for wrong in ({"name": "dpm"}, {"name": "unipc", "table": "sd"}, {"name": "ays", "solver": "dpm"}):
        with pytest.raises(ConfigError, match="Accepted"):
            sampler(**wrong)
    tiny = tiny_pipeline("sd")
    for options in ({"nonsense": 1}, {"use_karras_sigmas": True, "use_beta_sigmas": True}):
        with unchanged(tiny), pytest.raises(ConfigError):
            attach(tiny.pipe, sampler("dpmpp_2m", **options))


def test_two_samplers_are_refused() -> None:
    with pytest.raises(vlm_eff.core.errors.ConflictError):
        attach(tiny_pipeline("sd").pipe, sampler("ddim"), sampler("unipc"))


def test_a_blind_oracle_would_let_a_wrong_sampler_in(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_pipeline("sd")
    wrong = sampler("ddim", prediction_type="v_prediction")
    with pytest.raises(CapabilityError, match="known answer"):
        attach(tiny.pipe, wrong)
    monkeypatch.setattr(oracle, "distance", lambda *args: 0.0)
    with attach(tiny.pipe, wrong):
        tiny(2)
