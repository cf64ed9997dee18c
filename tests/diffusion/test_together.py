"""Plugins attached together do what each does alone."""

from __future__ import annotations

import pytest
import torch

from tests.tiny.pipelines import make_pipeline, tiny_pipeline
from vlm_eff import attach
from vlm_eff.core.errors import ConflictError
from vlm_eff.core.plugin import Plugin
from vlm_eff.diffusion import cfg_cache, deepcache, first_block, fora, forecast, sampler, tome_sd

STEPS = 6
LINE, TOKENS = forecast(interval=2), tome_sd(min_tokens=0)
NOTHING: dict[str, Plugin] = {
    "forecast": forecast(interval=1),
    "cfg_cache": cfg_cache(interval=1),
    "tome_sd": tome_sd(ratio=0.0, min_tokens=0),
    "sampler": sampler("present"),
}
HALVES = cfg_cache(interval=3, start=0.0)
# a pipeline, a plugin, and one beside it that does nothing
BESIDE: list[tuple[str, Plugin, str]] = [
    ("sd", LINE, "cfg_cache"),
    ("flux", LINE, "cfg_cache"),
    ("sd", HALVES, "forecast"),
    ("flux", HALVES, "forecast"),
    ("sd", LINE, "tome_sd"),
    ("flux", LINE, "tome_sd"),
    ("sd", TOKENS, "forecast"),
    ("sd", TOKENS, "cfg_cache"),
    ("sd", deepcache(interval=2), "cfg_cache"),
    ("dit", first_block(0.9), "cfg_cache"),
    ("flux", first_block(0.9), "cfg_cache"),
    ("dit", fora(interval=2), "cfg_cache"),
    ("sd", LINE, "sampler"),
]


@pytest.mark.parametrize(("family", "plugin", "other"), BESIDE)
def test_one_that_does_nothing_changes_nothing(family: str, plugin: Plugin, other: str) -> None:
    tiny = tiny_pipeline(family)
    with attach(tiny.pipe, plugin) as alone:
        want = tiny(STEPS)
    evaluations = alone.stats().runs[-1].evaluations
    for both in ((plugin, NOTHING[other]), (NOTHING[other], plugin)):
        with attach(tiny.pipe, *both) as handle:
            assert torch.equal(tiny(STEPS), want)
        assert handle.stats().runs[-1].evaluations == pytest.approx(evaluations, abs=1e-9)


ORDERS: list[tuple[str, Plugin, Plugin]] = [
    ("sd", LINE, HALVES),
    ("flux", LINE, HALVES),
    ("sd", LINE, TOKENS),
    ("sd", deepcache(interval=2), HALVES),
    ("dit", first_block(0.9), HALVES),
    ("sd", LINE, sampler("unipc")),
    ("flux", first_block(0.9), TOKENS),
]


@pytest.mark.parametrize(("family", "one", "other"), ORDERS)
def test_the_order_of_attaching_does_not_matter(family: str, one: Plugin, other: Plugin) -> None:
    tiny, made, spent = tiny_pipeline(family), [], []
    bare = tiny(STEPS)
    for plugins in ((one, other), (other, one), (one,), (other,)):
        with attach(tiny.pipe, *plugins) as handle:
            made.append(tiny(STEPS))
            assert torch.equal(tiny(STEPS), made[-1])
        run = handle.stats().runs[-1]
        spent.append(run.evaluations / run.evaluations_bare)
    # no bound by the smaller of the two alone: caches of blocks compute whenever the batch changes its rows
    assert torch.equal(made[0], made[1]) and spent[0] == spent[1] < 1
    assert all(not torch.equal(made[0], alone) for alone in made[2:])
    assert torch.isfinite(made[0]).all() and torch.equal(tiny(STEPS), bare)


def test_a_forecast_over_merged_tokens_forecasts_those() -> None:
    # what is forecast is what the merged model computes: reuse of its output, step for step
    tiny, outputs = make_pipeline("wan"), []
    hook = tiny.denoiser.register_forward_hook(lambda module, args, output: outputs.append(output[0].clone()))
    with attach(tiny.pipe, TOKENS):
        tiny(1)
    with attach(tiny.pipe, forecast(interval=2, order=0), TOKENS):
        tiny(2)
    hook.remove()
    assert torch.equal(outputs[0], outputs[2]) and torch.equal(outputs[1], outputs[3])
    assert torch.equal(outputs[4], outputs[2]) and torch.equal(outputs[5], outputs[3])


@pytest.mark.parametrize(
    ("family", "one", "other"),
    [("sd", forecast(), deepcache()), ("flux", forecast(), first_block()), ("dit", first_block(), fora())],
)
def test_two_step_caches_are_refused(family: str, one: Plugin, other: Plugin) -> None:
    tiny = tiny_pipeline(family)
    want = tiny(2)
    with pytest.raises(ConflictError, match="evaluations of the denoiser"):
        attach(tiny.pipe, one, other)
    with pytest.raises(ConflictError):
        attach(tiny.pipe, tome_sd(), tome_sd(ratio=0.3))
    assert torch.equal(tiny(2), want)
