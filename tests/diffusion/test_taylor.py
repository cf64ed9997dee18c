"""Expansions are exact on what they should be exact on, and are diffusers' own where these are right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import TaylorSeerCacheConfig
from torch import Tensor

from tests.tiny.pipelines import TinyPipeline, make_pipeline, tiny_pipeline
from vlm_eff import attach
from vlm_eff.core.denoise import ModuleSite, Step
from vlm_eff.core.errors import ConfigError
from vlm_eff.diffusion import taylor, taylorseer
from vlm_eff.diffusion.policies import AtSteps
from vlm_eff.diffusion.predictors import Polynomial
from vlm_eff.diffusion.step_cache import StepCache
from vlm_eff.diffusion.taylor import Taylor, expansion
from vlm_eff.models.denoise.state import Past, Unit, UnitState
from vlm_eff.models.denoise.view import Call, UnitView

EVEN, UNEVEN = (0.0, 3.0, 6.0, 9.0), (0.0, 1.0, 2.0, 6.0)


def view_at(here: int, places: tuple[float, ...], degree: int, sigmas: bool = False) -> tuple[UnitView, Tensor]:
    """A unit that returns a polynomial of the step, or of its sigma, and what it would return at `here`."""

    def step(place: float) -> Step:
        return Step(int(place), 20, 1000 - 50 * place, 1 / (1 + place), 0.0)

    def value(at: Step) -> Tensor:
        x = at.sigma if sigmas else at.index / 10
        return torch.tensor([[[x**degree, 2 - x**degree]]], dtype=torch.float32)

    past = [Past((value(step(place)),), [step(place)]) for place in places]
    now = step(here)
    call = Call("unet", now, 0, torch.zeros(1, 1), {})
    return UnitView(Unit("attn", "self"), call, torch.zeros(1, 1, 2), UnitState(past)), value(now)


@pytest.mark.parametrize("places", [EVEN, UNEVEN])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_taylor_is_exact_on_lines(order: int, places: tuple[float, ...]) -> None:
    for degree in (0, 1):
        view, want = view_at(11, places, degree)
        torch.testing.assert_close(Taylor(order)(view)[0], want)


@pytest.mark.parametrize("sigmas", [False, True])
@pytest.mark.parametrize("places", [EVEN, UNEVEN])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_divided_differences_are_exact_up_to_their_degree(order: int, places: tuple[float, ...], sigmas: bool) -> None:
    axis = "sigma" if sigmas else "index"
    plugin = taylorseer(max_order=order, axis=axis, differences="divided")
    for degree in range(order + 1):
        view, want = view_at(11, places, degree, sigmas)
        torch.testing.assert_close(plugin.predictor(view)[0], want, rtol=1e-4, atol=1e-5)
    view, want = view_at(11, places, order + 1, sigmas)
    assert not torch.allclose(plugin.predictor(view)[0], want, rtol=1e-4, atol=1e-5)


def test_published_differences_are_no_derivatives() -> None:
    # f = x^2 at 0, 3, 6: D_1 = 9, D_2 = 2, and three steps on 36 + 27 + 9 where f is 81
    assert expansion(9, (0.0, 3.0, 6.0)) == pytest.approx([0.5, -2.0, 2.5])
    assert sum(w * x**2 for w, x in zip(expansion(9, (0.0, 3.0, 6.0)), (0, 3, 6), strict=True)) == pytest.approx(72)


def test_a_step_that_came_twice_counts_once() -> None:
    assert expansion(4, (1.0, 2.0, 2.0)) == pytest.approx([-2.0, 0.0, 3.0])
    assert expansion(4, (2.0,)) == [1.0]


def test_a_wrong_factorial_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taylor.math, "factorial", lambda m: 1 + m)
    view, want = view_at(11, EVEN, 1)
    assert not torch.allclose(Taylor(1)(view)[0], want)


def test_settings() -> None:
    assert isinstance(taylorseer().predictor, Taylor)
    assert taylorseer(axis="log_snr").predictor == Polynomial(1, "log_snr")
    for wrong in ({"warm_up": 0}, {"interval": 0}, {"max_order": -1}, {"axis": "time"}, {"differences": "no"}):
        with pytest.raises(ConfigError):
            taylorseer(**wrong)
    with pytest.raises(ConfigError, match="'self' or 'cross'"):
        taylorseer(kinds=("attention",))


def test_the_schedule_is_the_papers() -> None:
    tiny = tiny_pipeline("dit")
    with attach(tiny.pipe, taylorseer(interval=3)) as handle:
        tiny(9)
        assert handle.stats().runs[-1].computed_steps == [0, 1, 2, 5, 8]


@pytest.mark.parametrize("order", [1, 2])
def test_it_is_the_taylor_seer_of_diffusers(order: int) -> None:
    steps, interval = 9, 3
    theirs = make_pipeline("flux")
    config: dict[str, Any] = {"cache_interval": interval, "max_order": order, "disable_cache_before_step": 3}
    theirs.denoiser.enable_cache(TaylorSeerCacheConfig(**config, taylor_factors_dtype=torch.float32))
    # with warm-up 3 they predict step 3 and compute step 4
    computed = (0, 1, 2, *range(4, steps, interval))
    ours = StepCache("taylorseer", ModuleSite(("self",)), AtSteps(computed, steps), Taylor(order))
    want, got = theirs(steps, guided=False), with_plugin(tiny_pipeline("flux"), ours, steps)
    bare = tiny_pipeline("flux")(steps, guided=False)
    assert (got - want).norm() < 1e-4 * (want - bare).norm()


def with_plugin(tiny: TinyPipeline, plugin: Any, steps: int) -> Tensor:
    with attach(tiny.pipe, plugin):
        return tiny(steps, guided=False)
