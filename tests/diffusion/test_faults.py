"""What goes wrong with the caches of diffusers and must not go wrong here.

Others stand with their methods: guidance of two calls a step under attention caches (test_attention_caches), stacks of
odd streams, one block or no cache context (test_first_block), a run that begins inside a cache's band
(test_attention_caches), the order of the halves (test_guidance).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.hooks import FirstBlockCacheConfig
from torch import Tensor

from tests.contracts.snapshot import assert_unchanged, snapshot
from tests.diffusion.checks import relative
from tests.tiny.pipelines import TinyPipeline, make_pipeline, tiny_pipeline
from vlm_eff import attach
from vlm_eff.core.plugin import Plugin
from vlm_eff.diffusion import cfg_cache, deepcache, first_block, forecast, guidance_interval

STEPS = 6


def prompts(*seeds: int) -> Tensor:
    return torch.cat([torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@pytest.fixture
def flux() -> Iterator[TinyPipeline]:
    yield make_pipeline("flux")


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_cache_of_diffusers_may_leave_before_ours(flux: TinyPipeline, ours_first: bool) -> None:
    # their removal of a hook that is not outermost cuts off the next one
    bare = flux(STEPS)
    with attach(flux.pipe, forecast(interval=2)):
        want = flux(STEPS)
    if not ours_first:
        flux.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    handle = attach(flux.pipe, forecast(interval=2))
    if ours_first:
        flux.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    assert torch.equal(flux(STEPS), want)
    flux.pipe.transformer.disable_cache()
    assert torch.equal(flux(STEPS), want)
    handle.detach()
    assert torch.equal(flux(STEPS), bare)


def test_a_cache_of_diffusers_may_stay_after_ours(flux: TinyPipeline) -> None:
    flux.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.9))
    theirs, before = flux(STEPS), snapshot(flux.denoiser)
    with attach(flux.pipe, forecast(interval=1)):
        assert torch.equal(flux(STEPS), theirs)
    assert_unchanged(before, flux.denoiser)
    assert torch.equal(flux(STEPS), theirs)


@pytest.mark.parametrize(
    ("family", "plugin"),
    [("sd", deepcache(interval=2)), ("sd", forecast(interval=2)), ("flux", forecast(interval=3))],
)
def test_an_interrupted_run_of_another_size_harms_nothing(family: str, plugin: Plugin) -> None:
    tiny = tiny_pipeline(family)

    def stop(pipe: Any, index: int, timestep: Any, values: Any) -> Any:
        if index == 3:
            raise KeyboardInterrupt
        return values

    with attach(tiny.pipe, plugin) as handle:
        want = tiny(STEPS)
        with pytest.raises(KeyboardInterrupt):
            tiny(STEPS, height=32, width=16, callback_on_step_end=stop)
        assert torch.equal(tiny(STEPS), want)
    assert [run.mismatches for run in handle.stats().runs] == [0, 0, 0]


def test_easy_and_hard_prompts_of_a_batch_are_decided_apart() -> None:
    tiny = tiny_pipeline("sd3")
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    pooled = torch.randn(2, 16, generator=torch.Generator().manual_seed(2))
    words = torch.cat([prompts(0), 6 * prompts(1)])

    def run(rows: slice) -> Tensor:
        call = {"prompt_embeds": words[rows], "pooled_prompt_embeds": pooled[rows], "latents": noise[rows]}
        unused = {"negative_prompt_embeds": words[rows], "negative_pooled_prompt_embeds": pooled[rows]}
        return tiny(8, guided=False, **call, **unused)

    def apart(threshold: float, per_row: bool) -> float:
        with attach(tiny.pipe, first_block(threshold, per_row=per_row)):
            both, alone = run(slice(0, 2)), [run(slice(row, row + 1)) for row in (0, 1)]
        return relative(both, torch.cat(alone))

    for threshold in (0.13, 0.16, 0.25):
        # rows are computed apart when at least half of them is predicted; with two that is always
        assert apart(threshold, per_row=True) < 1e-4
        # one decision for both: these are thresholds at which the two prompts differ
        assert apart(threshold, per_row=False) > 1e-3


def test_guidance_may_be_cut_off_in_batches() -> None:
    tiny = tiny_pipeline("sd")
    call = {"prompt_embeds": prompts(0, 1), "negative_prompt_embeds": prompts(2, 3)}
    cut = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    more = {"callback_on_step_end": cut, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    with pytest.raises((RuntimeError, ValueError)):
        tiny(STEPS, **call, **more)
    with attach(tiny.pipe, guidance_interval(0.0, 0.5)) as handle:
        both = tiny(STEPS, **call)
        assert tiny.pipe._guidance_scale == tiny.call["guidance_scale"]
    assert torch.isfinite(both).all()
    assert handle.stats().runs[-1].evaluations < STEPS
    # of one prompt theirs works, and beside ours too
    want = tiny(STEPS, **more)
    with attach(tiny.pipe, cfg_cache(interval=1)):
        assert torch.equal(tiny(STEPS, **more), want)
