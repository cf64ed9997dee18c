"""First block cache: equal to diffusers' own where that is right, and right where that is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache
from torch import Tensor, nn

from tests.diffusion.checks import relative
from tests.tiny.pipelines import make_pipeline, tiny_pipeline
from tests.tiny.transformers import OTHERS, other_pipeline
from vlm_eff import attach
from vlm_eff.core.errors import CapabilityError, ConfigError
from vlm_eff.diffusion import first_block
from vlm_eff.models.denoise.view import UnitView

STEPS = 8


def _theirs(family: str, threshold: float) -> tuple[Tensor, list[int]]:
    """What diffusers' cache makes, and how often each step's blocks were all computed."""
    tiny = make_pipeline(family)
    transformer: Any = tiny.denoiser
    transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    ran: list[int] = []
    lists = [getattr(transformer, name, None) for name in ("single_transformer_blocks", "blocks")]
    last = next(found for found in lists if found is not None)[-1]
    parts = last.attn if hasattr(last, "attn") else last.attn1
    parts.register_forward_hook(lambda *_: ran.append(1))
    return tiny(STEPS), ran


@pytest.mark.parametrize("family", ["flux", "wan"])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.4, 0.6])
def test_equal_to_diffusers_where_it_runs(family: str, threshold: float) -> None:
    want, ran = _theirs(family, threshold)
    tiny = tiny_pipeline(family)
    with attach(tiny.pipe, first_block(threshold)) as handle:
        got = tiny(STEPS)
    assert relative(got, want) < 1e-5
    assert sum(call.computed == 1 for call in handle.stats().runs[-1].calls) == len(ran)


def test_thresholds_tell_steps_apart() -> None:
    counts = [len(_theirs("flux", threshold)[1]) for threshold in (0.0, 0.3, 0.6)]
    assert counts[0] > counts[1] > counts[2]


def test_a_change_against_the_step_before_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # the fault: comparing with the last step, computed or not
    monkeypatch.setattr(UnitView, "renewed", lambda view, asker: [True] * view.rows)
    tiny, different = tiny_pipeline("flux"), []
    for threshold in (0.3, 0.4, 0.6):
        want, _ = _theirs("flux", threshold)
        with attach(tiny.pipe, first_block(threshold)):
            different.append(relative(tiny(STEPS), want) > 1e-5)
    assert any(different)


@pytest.mark.parametrize("family", ["sd3", "flux2"])
def test_stacks_that_crash_theirs(family: str) -> None:
    # the last block of SD3 returns no text; the single blocks of Flux2 return one stream of both
    tiny = tiny_pipeline(family) if family == "sd3" else other_pipeline(family)
    want = tiny(STEPS)
    with attach(tiny.pipe, first_block(0.9)) as handle:
        got = tiny(STEPS)
    assert 0 < relative(got, want) < 0.2
    assert handle.stats().runs[-1].evaluations < STEPS
    theirs: nn.Module = make_pipeline("sd3").denoiser if family == "sd3" else tiny.denoiser
    if family == "sd3":
        apply_first_block_cache(theirs, FirstBlockCacheConfig(threshold=0.9))


@pytest.mark.parametrize("family", OTHERS)
def test_pipelines_without_a_cache_context(family: str) -> None:
    tiny = other_pipeline(family)
    want = tiny(STEPS)
    with attach(tiny.pipe, first_block(0.0)):
        assert torch.equal(tiny(STEPS), want)
    with attach(tiny.pipe, first_block(0.9)) as handle:
        assert 0 < relative(tiny(STEPS), want) < 0.2
    run = handle.stats().runs[-1]
    assert run.evaluations < run.evaluations_bare and run.mismatches == 0


def test_models_of_one_block() -> None:
    tiny = make_pipeline("dit")
    tiny.pipe.transformer.transformer_blocks = tiny.pipe.transformer.transformer_blocks[:1]
    with pytest.raises(CapabilityError, match="forecast"):
        attach(tiny.pipe, first_block())
    with pytest.raises(IndexError):
        apply_first_block_cache(tiny.denoiser, FirstBlockCacheConfig())


def test_an_interrupted_run_leaves_nothing_to_the_next() -> None:
    tiny = tiny_pipeline("flux")
    with attach(tiny.pipe, first_block(0.9)):
        want = tiny(STEPS, prompt_embeds=tiny.call["negative_prompt_embeds"])
        larger = tiny(STEPS, height=32, width=32)
        for more in ({}, {"height": 24, "width": 16}):
            _interrupt(tiny, **more)
            assert torch.equal(tiny(STEPS, prompt_embeds=tiny.call["negative_prompt_embeds"]), want)
            _interrupt(tiny, **more)
            assert torch.equal(tiny(STEPS, height=32, width=32), larger)


def _interrupt(tiny: Any, **more: Any) -> None:
    def stop(pipe: Any, index: int, timestep: Any, values: Any) -> Any:
        if index == 3:
            raise KeyboardInterrupt
        return values

    with pytest.raises(KeyboardInterrupt):
        tiny(STEPS, callback_on_step_end=stop, **more)


def test_a_threshold_below_zero_is_refused() -> None:
    for wrong in (-0.1, float("nan"), True, "0.1"):
        with pytest.raises(ConfigError):
            first_block(threshold=wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------- rows of a batch


def _batch_against_rows(per_row: bool) -> tuple[float, int]:
    """Worst difference between two images in one batch and each alone, and how many steps told the two apart."""
    tiny = tiny_pipeline("sd3")
    words, pooled = tiny.call["prompt_embeds"], tiny.call["pooled_prompt_embeds"]
    noise = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    noise *= torch.tensor([1.0, 6.0]).view(2, 1, 1, 1)
    worst, apart = 0.0, 0
    for threshold in (0.1, 0.2, 0.3, 0.4):
        with attach(tiny.pipe, first_block(threshold, per_row=per_row)) as handle:
            call = {"guided": False, "negative_prompt_embeds": None, "negative_pooled_prompt_embeds": None}
            both = {"prompt_embeds": words.repeat(2, 1, 1), "pooled_prompt_embeds": pooled.repeat(2, 1)}
            together = tiny(STEPS, latents=noise.clone(), **both, **call)
            alone = [tiny(STEPS, latents=noise[row : row + 1].clone(), **call) for row in range(2)]
        worst = max(worst, relative(together, torch.cat(alone)))
        one, other = (run.calls for run in handle.stats().runs[1:])
        apart += sum((a.computed < 1) != (b.computed < 1) for a, b in zip(one, other, strict=True))
    return worst, apart


def test_a_batch_is_its_rows() -> None:
    worst, apart = _batch_against_rows(per_row=True)
    assert worst < 1e-5 and apart > 0


def test_a_shared_decision_is_not_its_rows() -> None:
    assert _batch_against_rows(per_row=False)[0] > 1e-5
