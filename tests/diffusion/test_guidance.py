"""Work saved of classifier-free guidance: what is left out, what is supplied, and that the halves never meet."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch

from tests.diffusion.toy import distance, prompts, spy, toy_pipeline
from tests.tiny.pipelines import SEQUENTIAL, make_pipeline, tiny_pipeline
from vlm_eff import attach
from vlm_eff.core.denoise import GuidanceSite, NoGuidance
from vlm_eff.core.errors import CapabilityError, StateError
from vlm_eff.diffusion import adaptive_guidance, cfg_cache, deepcache, first_block, forecast, guidance_interval, tome_sd
from vlm_eff.diffusion.gate import GuidedToGate
from vlm_eff.diffusion.guidance import Guide
from vlm_eff.models.denoise import guidance as driver
from vlm_eff.models.denoise import halves

BATCHED = ("sd", "sdxl", "dit", "pixart", "sd3")
# rows of one half of the tiny pipelines' calls
HALF = {"dit": 2}


@pytest.mark.parametrize("family", BATCHED)
def test_batches_shrink_to_the_conditional_half(family: str) -> None:
    tiny = tiny_pipeline(family)
    half = HALF.get(family, 1)
    with spy(tiny.denoiser) as calls:
        want = tiny(10)
        bare = list(calls)
        calls.clear()
        with attach(tiny.pipe, cfg_cache(interval=5, start=0.3)) as handle:
            got = tiny(10)
    assert [call.rows // half for call in calls] == [2, 2, 2, 2, 1, 1, 1, 1, 2, 1]
    run = handle.stats().runs[-1]
    assert (run.evaluations, run.evaluations_bare) == (7.5, 10)
    # PixArt does not say whether it guides: its first step is not counted
    assert (run.notes["guidance_whole"], run.notes["guidance_half"]) == (4 if family == "pixart" else 5, 5)
    assert 0.7 < run.flops / run.flops_bare < 0.8
    assert 0 < distance(got, want) < 0.5
    # SD's conditional half is the second, DiT's the first
    both, alone = bare[0].prompts, calls[4].prompts
    assert both is not None and alone is not None
    assert torch.equal(alone, both[:half] if family == "dit" else both[half:])


@pytest.mark.parametrize("family", SEQUENTIAL)
def test_second_calls_are_left_out(family: str) -> None:
    tiny = tiny_pipeline(family)
    with spy(tiny.denoiser) as calls, attach(tiny.pipe, cfg_cache(interval=5, start=0.3)) as handle:
        tiny(10)
    # both branches, and the conditional one alone; it is always called first
    order = [True, False] * 4 + [True] * 4 + [True, False, True]
    good = calls[0].prompts
    assert good is not None and [torch.equal(seen.prompts, good) for seen in calls if seen.prompts is not None] == order
    run = handle.stats().runs[-1]
    assert [(c.step, c.branch) for c in run.calls if c.computed == 0] == [(s, 1) for s in (4, 5, 6, 7, 9)]
    assert (run.evaluations, run.evaluations_bare) == (15, 20)


def test_a_constant_difference_is_exact() -> None:
    tiny = toy_pipeline()
    want = tiny(8)
    with attach(tiny.pipe, cfg_cache(interval=4, start=0.0)) as handle:
        assert distance(tiny(8), want) < 1e-5
    assert handle.stats().runs[-1].evaluations < 8
    with attach(tiny.pipe, cfg_cache(interval=4, start=0.0, split="fft", low=1.0, high=1.0)):
        assert distance(tiny(8), want) < 1e-5


def test_a_linear_difference_is_exact_when_it_is_forecast() -> None:
    tiny = toy_pipeline(slope=0.002)
    want = tiny(8)
    with attach(tiny.pipe, cfg_cache(interval=4, start=0.2, order=1)) as handle:
        assert distance(tiny(8), want) < 1e-5
    assert handle.stats().runs[-1].evaluations < 8
    with attach(tiny.pipe, cfg_cache(interval=4, start=0.2)):
        assert distance(tiny(8), want) > 1e-3


@pytest.mark.parametrize(("sabotage", "value"), [("_supplied", lambda one, d, sign: one), ("_split", None)])
def test_a_wrong_half_is_noticed(sabotage: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = driver._split
    monkeypatch.setattr(driver, sabotage, value or (lambda tensors: swapped(tensors)[::-1]))
    with pytest.raises(AssertionError):
        test_a_constant_difference_is_exact()


def test_unguided_steps_are_those_of_the_prompt_alone() -> None:
    for family in ("sd", "dit", "pixart", "flux", "wan"):
        tiny = tiny_pipeline(family)
        if family == "dit":
            continue
        alone = tiny(4, guided=False)
        with attach(tiny.pipe, guidance_interval(0.0, 0.0)) as handle:
            got = tiny(4)
        if family == "pixart":
            # it does not say whether it guides: the first step is whole
            assert handle.stats().runs[-1].notes["guidance_half"] == 3
            assert distance(got, alone) > 1e-3
        else:
            assert distance(got, alone) < 1e-4, family


def test_dit_says_by_its_labels_that_it_guides() -> None:
    tiny = tiny_pipeline("dit")
    with attach(tiny.pipe, guidance_interval(0.0, 0.0)) as handle:
        tiny(4)
    assert handle.stats().runs[-1].notes["guidance_half"] == 4


def test_the_halves_order_is_read_from_what_the_scheduler_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for sign in (1, -1, 0.7):
        assert halves.conditional_is_first(sign * (b + 5 * (a - b)), a, b) is True
        assert halves.conditional_is_first(sign * (a + 5 * (b - a)), a, b) is False
    assert halves.conditional_is_first(a, a, b) is None
    assert halves.conditional_is_first(torch.randn(1, 4, 8, 8), a, b) is None
    # in half precision, with halves that hardly differ: rather unknown than wrong
    near = b + 0.01 * a
    assert halves.conditional_is_first((near + 3 * (b - near)).bfloat16(), near, b) in (False, None)
    # on one line it cannot be told
    assert halves.conditional_is_first(7 * a, 3 * a, a) is None
    # a pipeline that is taken for one with the other order is found out
    monkeypatch.setattr(halves, "_COND_FIRST", frozenset({"StableDiffusionPipeline"}))
    tiny = tiny_pipeline("sd")
    with attach(tiny.pipe, guidance_interval(0.5, 1.0)):
        with pytest.raises(StateError, match="Run it again"):
            tiny(4)
        got = tiny(4)
    monkeypatch.undo()
    with attach(tiny.pipe, guidance_interval(0.5, 1.0)):
        assert torch.equal(tiny(4), got)


def test_two_prompts_from_one_noise_are_no_pair() -> None:
    tiny = tiny_pipeline("sd")
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1)).repeat(2, 1, 1, 1)
    call = {"prompt_embeds": prompts(0, 1), "negative_prompt_embeds": None, "latents": noise}
    want = tiny(4, guided=False, **call)
    for plugin in (cfg_cache(interval=4, start=0.0), guidance_interval(0.0, 0.0)):
        with attach(tiny.pipe, plugin), pytest.warns(NoGuidance):
            assert torch.equal(tiny(4, guided=False, **call), want)


def test_without_the_second_look_they_would_be_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halves, "batched_guidance", lambda latents: latents.shape[0] % 2 == 0)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test_two_prompts_from_one_noise_are_no_pair()


def test_runs_without_guidance_say_so() -> None:
    for family in ("sd", "flux"):
        tiny = tiny_pipeline(family)
        want = tiny(3, guided=False)
        with attach(tiny.pipe, cfg_cache()), pytest.warns(NoGuidance, match="guidance scale above 1"):
            assert torch.equal(tiny(3, guided=False), want)


def test_batches_of_prompts_are_their_single_rows() -> None:
    tiny = tiny_pipeline("sd")
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    good, bad = prompts(0, 1), prompts(2, 3)

    def run(rows: slice) -> torch.Tensor:
        return tiny(6, prompt_embeds=good[rows], negative_prompt_embeds=bad[rows], latents=noise[rows])

    for plugin in (cfg_cache(interval=3, start=0.0, order=1), guidance_interval(0.3, 0.7)):
        with attach(tiny.pipe, plugin):
            both = run(slice(0, 2))
            for row in (0, 1):
                assert distance(both[row : row + 1], run(slice(row, row + 1))) < 1e-4


def test_guidance_may_end_in_the_middle_of_a_run() -> None:
    tiny = make_pipeline("sd")

    def cut(pipe: Any, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if index == 2:
            pipe._guidance_scale = 0.0
            return {"prompt_embeds": kwargs["prompt_embeds"].chunk(2)[1]}
        return {}

    more = {"callback_on_step_end": cut, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    call = {"prompt_embeds": prompts(0, 1), "negative_prompt_embeds": prompts(2, 3)}
    want = tiny(6, **call, **more)
    with attach(tiny.pipe, cfg_cache(interval=1)):
        assert torch.equal(tiny(6, **call, **more), want)
    with spy(tiny.denoiser) as calls, attach(tiny.pipe, cfg_cache(interval=5, start=0.0)):
        assert torch.isfinite(tiny(6, **call, **more)).all()
    assert [seen.rows for seen in calls] == [4, 2, 2, 2, 2, 2]


def test_the_cosine_ends_guidance_once_and_for_all() -> None:
    tiny = toy_pipeline()
    with attach(tiny.pipe, adaptive_guidance(bound=-1.0)) as handle:
        tiny(5)
    assert handle.stats().runs[-1].notes == {"guidance_whole": 1, "guidance_half": 4}
    with attach(tiny.pipe, Guide("gate", GuidedToGate(0.2))) as handle:
        tiny(5)
    assert handle.stats().runs[-1].notes == {"guidance_whole": 2, "guidance_half": 3}


def test_packed_latents_have_no_frequencies() -> None:
    with (
        attach(tiny_pipeline("flux").pipe, cfg_cache(interval=3, start=0.0, split="fft")),
        pytest.raises(CapabilityError, match="packed"),
    ):
        tiny_pipeline("flux")(4)
    with attach(tiny_pipeline("wan").pipe, cfg_cache(interval=3, start=0.0, split="fft")) as handle:
        assert torch.isfinite(tiny_pipeline("wan")(6)).all()
    assert handle.stats().runs[-1].evaluations < 12


@pytest.mark.parametrize("family", ["sd", "wan"])
def test_forecasts_go_around_it(family: str) -> None:
    tiny = tiny_pipeline(family)
    want = tiny(10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with attach(tiny.pipe, forecast(interval=2), cfg_cache(interval=2, start=0.2)) as handle:
            got = tiny(10)
    run = handle.stats().runs[-1]
    # computed at 0, 2, 4, 6 and 8; both halves at 0, 2 and 6
    assert run.notes == {"guidance_whole": 3, "guidance_half": 2}
    assert run.evaluations == run.evaluations_bare * 4 / 10
    assert run.mismatches == 0
    assert distance(got, want) < 0.5


def test_forecast_differences_of_a_closed_form_stay_exact() -> None:
    tiny = toy_pipeline()
    with attach(tiny.pipe, forecast(interval=2)):
        want = tiny(10)
    with attach(tiny.pipe, forecast(interval=2), cfg_cache(interval=4, start=0.2)):
        assert distance(tiny(10), want) < 1e-5
    with attach(tiny.pipe, cfg_cache(interval=4, start=0.2), forecast(interval=2)):
        assert distance(tiny(10), want) < 1e-5


def test_unguided_steps_start_forecasts_anew() -> None:
    # around the forecast: no half is continued from what the other, or a run with other rows, was
    tiny = tiny_pipeline("sd")
    with spy(tiny.denoiser) as calls, attach(tiny.pipe, guidance_interval(0.3, 0.7), forecast(interval=3)):
        tiny(10)
    # whole at 3 to 6; a new batch is computed at once: 0, 3, 6, 7, 9
    assert [seen.rows for seen in calls] == [1, 2, 2, 1, 1]


GUIDES = (guidance_interval(0.25, 0.65), adaptive_guidance(bound=-1.0), Guide("gate", GuidedToGate(0.3)))


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_forecasts_never_mix_the_halves(guide: Guide) -> None:
    # each half returns the same at all steps: it is forecast exactly, unless it is continued from the other
    tiny = toy_pipeline(gain=0.0)
    with attach(tiny.pipe, guide):
        want = tiny(10)
    for plugins in ((guide, forecast(interval=3)), (forecast(interval=3), guide)):
        with attach(tiny.pipe, *plugins) as handle:
            got = tiny(10)
        assert handle.stats().runs[-1].evaluations < 7
        assert distance(got, want) < 1e-5


def test_inside_of_forecasts_the_halves_would_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guide, "sites", property(lambda self: (GuidanceSite(inside=True),)))
    with pytest.raises(AssertionError):
        test_forecasts_never_mix_the_halves(GUIDES[0])


def test_merged_tokens_go_with_it() -> None:
    tiny = tiny_pipeline("sd")
    want = tiny(6)
    merge = tome_sd(ratio=0.5, min_tokens=0, importance="guidance")
    with attach(tiny.pipe, cfg_cache(interval=3, start=0.0), merge) as handle:
        got = tiny(6)
    run = handle.stats().runs[-1]
    assert run.notes["guidance_half"] == 4 and run.evaluations < 4
    assert 0 < distance(got, want) < 0.5


def test_two_denoisers_have_differences_of_their_own() -> None:
    tiny = make_pipeline("wan")
    tiny.pipe.register_modules(transformer_2=copy.deepcopy(tiny.pipe.transformer))
    tiny.pipe.register_to_config(boundary_ratio=0.5)
    with attach(tiny.pipe, cfg_cache(interval=4, start=0.0)) as handle:
        assert torch.isfinite(tiny(10)).all()
    run = handle.stats().runs[-1]
    for name in ("transformer", "transformer_2"):
        calls = [call for call in run.calls if call.denoiser == name]
        assert len(calls) > 4 and [call.computed for call in calls[:4]] == [1, 1, 1, 0]


def test_blocks_of_two_calls_are_skipped_with_it() -> None:
    tiny = tiny_pipeline("flux")
    plugins = (cfg_cache(interval=4, start=0.0), first_block(threshold=0.9))
    want = tiny(10)
    with attach(tiny.pipe, *plugins) as handle:
        got = tiny(10)
    run = handle.stats().runs[-1]
    # a branch that was left out is computed whole when it comes back
    assert [call.computed for call in run.calls if call.branch == 1 and call.computed > 0] == [1, 1, 1]
    assert run.evaluations < 10
    assert distance(got, want) < 0.5


def test_caches_inside_compute_when_the_batch_changes() -> None:
    tiny = tiny_pipeline("sd")
    want = tiny(9)
    middle = tiny.denoiser.mid_block
    assert isinstance(middle, torch.nn.Module)
    with spy(middle) as calls, attach(tiny.pipe, cfg_cache(interval=4, start=0.0), deepcache(interval=3)) as handle:
        got = tiny(9)
    # whole at 0, 4 and 8; the inside at 0, 3 and 6 and wherever the batch has other rows than at the step before
    assert [seen.rows for seen in calls] == [2, 1, 1, 2, 1, 1, 2]
    assert handle.stats().runs[-1].evaluations < 6
    assert distance(got, want) < 0.5
