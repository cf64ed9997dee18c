"""What adaptive caches decide: sums, drifts and vetoes, against their rules written once more and against diffusers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.hooks import MagCacheConfig
from torch import Tensor

from tests.diffusion.checks import relative
from tests.tiny.pipelines import make_pipeline, tiny_pipeline
from tests.tiny.transformers import OTHERS, other_pipeline
from vlm_eff import attach
from vlm_eff.core.errors import CapabilityError, ConfigError
from vlm_eff.diffusion import easycache, forecast, magcache, thresholds
from vlm_eff.diffusion.calibration import MagnitudeTable, Provenance
from vlm_eff.models.denoise.view import UnitView

STEPS = 8
RATIOS = (1.0, 1.05, 1.03, 0.98, 0.96, 1.02, 1.01, 0.97)


def _spied(tiny: Any) -> tuple[list[Tensor], list[Tensor], Any]:
    """Latents and outputs of every call of a denoiser, and what takes the spies off."""
    latents: list[Tensor] = []
    outputs: list[Tensor] = []

    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        latents.append((args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))).clone())
        outputs.append((output[0] if isinstance(output, tuple) else output.sample).clone())

    return latents, outputs, tiny.denoiser.register_forward_hook(note, with_kwargs=True)


def _mean(value: Tensor) -> float:
    return float(value.abs().mean())


def _easy_rule(threshold: float, warm_up: int, faithful: bool) -> tuple[float, int]:
    """The rule written down once more, on what a run has seen: worst difference of outputs, and steps skipped."""
    tiny = tiny_pipeline("flux")
    latents, outputs, hook = _spied(tiny)
    with attach(tiny.pipe, easycache(threshold, warm_up=warm_up, faithful=faithful)) as handle:
        tiny(STEPS, guided=False)
    hook.remove()
    computed = {call.step for call in handle.stats().runs[-1].calls if call.computed == 1}
    full: list[int] = []
    total, worst, skipped = 0.0, 0.0, 0
    for i in range(STEPS):
        if len(full) >= 2:
            a, b = full[-2:]
            strength = _mean(outputs[b] - outputs[a]) / _mean(latents[b] - latents[a])
            total += strength * _mean(latents[i] - latents[i - 1]) / _mean(outputs[b])
        skip = len(full) >= 2 and warm_up <= i < STEPS - 1 and total < threshold
        assert skip == (i not in computed)
        if not skip:
            full.append(i)
            total = 0.0
            continue
        skipped += 1
        a, b = full[-2:]
        want = (
            latents[i] + outputs[b] - latents[b]
            if faithful
            else outputs[b] + (i - b) / (b - a) * (outputs[b] - outputs[a])
        )
        worst = max(worst, relative(outputs[i], want))
    return worst, skipped


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.3])
def test_easycache_follows_its_rule(threshold: float, faithful: bool) -> None:
    worst, _ = _easy_rule(threshold, 2, faithful)
    assert worst < 1e-5


def test_easycache_skips_more_the_higher_its_threshold() -> None:
    counts = [_easy_rule(threshold, 2, False)[1] for threshold in (0.0, 0.1, 0.5)]
    assert counts[0] == 0 and counts[0] <= counts[1] < counts[2]


def test_a_sum_that_is_never_reset_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UnitView, "renewed", lambda view, asker: [False] * view.rows)
    with pytest.raises(AssertionError):
        for threshold in (0.1, 0.3, 0.5):
            _easy_rule(threshold, 2, False)


def test_faithful_easycache_refuses_outputs_of_another_shape() -> None:
    tiny = tiny_pipeline("dit")
    with attach(tiny.pipe, easycache(0.9, warm_up=2, faithful=True)), pytest.raises(CapabilityError, match="faithful"):
        tiny(STEPS)


def _theirs(family: str, **settings: Any) -> tuple[Tensor, int]:
    """What diffusers' MagCache makes, and how often it computed all blocks."""
    tiny = make_pipeline(family)
    transformer: Any = tiny.denoiser
    config = MagCacheConfig(num_inference_steps=STEPS, mag_ratios=torch.tensor(RATIOS), **settings)
    transformer.enable_cache(config)
    found = next(f for n in ("single_transformer_blocks", "blocks") if (f := getattr(transformer, n, None)) is not None)
    ran: list[int] = []
    attention = found[-1].attn if hasattr(found[-1], "attn") else found[-1].attn1
    attention.register_forward_hook(lambda *_: ran.append(1))
    return tiny(STEPS), len(ran)


SETTINGS = [(0.025, 3, 0.2), (0.06, 3, 0.2), (0.5, 2, 0.0), (0.5, 5, 0.3), (0.1, 1, 0.2)]


@pytest.mark.parametrize("family", ["flux", "wan"])
@pytest.mark.parametrize(("threshold", "most", "retention"), SETTINGS)
def test_magcache_is_equal_to_diffusers(family: str, threshold: float, most: int, retention: float) -> None:
    want, count = _theirs(family, threshold=threshold, max_skip_steps=most, retention_ratio=retention)
    tiny = tiny_pipeline(family)
    table = MagnitudeTable((RATIOS,), Provenance())
    with attach(tiny.pipe, magcache(table, threshold, most, retention)) as handle:
        got = tiny(STEPS)
    assert sum(call.computed == 1 for call in handle.stats().runs[-1].calls) == count < 2 * STEPS
    assert relative(got, want) < 1e-5


def test_a_drift_that_is_never_reset_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UnitView, "renewed", lambda view, asker: [False] * view.rows)
    with pytest.raises(AssertionError):
        for setting in SETTINGS:
            test_magcache_is_equal_to_diffusers("flux", *setting)


def test_magcache_carries_stacks_that_theirs_does_not() -> None:
    for family in OTHERS:
        tiny = other_pipeline(family)
        want = tiny(STEPS)
        with attach(tiny.pipe, magcache(MagnitudeTable((RATIOS,), Provenance()), 0.2)) as handle:
            assert 0 < relative(tiny(STEPS), want) < 0.5
        assert handle.stats().runs[-1].evaluations < handle.stats().runs[-1].evaluations_bare


@pytest.mark.parametrize(("veto", "evaluations"), [(0.0, STEPS), (1e9, STEPS // 2 + 1)])
def test_a_veto_computes_what_the_schedule_would_not(veto: float, evaluations: int) -> None:
    # the first forecast needs two computed steps before its change can be told
    tiny = tiny_pipeline("sd")
    with attach(tiny.pipe, forecast(interval=2, veto=veto)) as handle:
        tiny(STEPS)
    assert handle.stats().runs[-1].evaluations == evaluations


def test_a_veto_between_is_between() -> None:
    tiny = tiny_pipeline("flux")
    counts = []
    for veto in (0.0, 0.1, 0.3, 1e9):
        with attach(tiny.pipe, forecast(interval=4, veto=veto)) as handle:
            tiny(12, guided=False)
        counts.append(handle.stats().runs[-1].evaluations)
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def test_both_must_predict() -> None:
    rows = torch.tensor([True, False])

    def says(answer: Any) -> Any:
        return lambda view, change, forced: answer

    view: Any = None
    for one, other, want in (
        (False, True, False),
        (True, False, False),
        (True, rows, rows),
        (rows, True, rows),
        (rows, False, False),
        (rows, rows, rows),
        (False, rows, False),
    ):
        got = thresholds.BothPredict(says(one), says(other))(view, None, False)
        assert torch.equal(torch.as_tensor(got), torch.as_tensor(want))


def test_numbers_out_of_range_are_refused() -> None:
    table = MagnitudeTable((RATIOS,), Provenance())
    for wrong in (
        lambda: easycache(-1.0),
        lambda: magcache(table, retention=1.5),
        lambda: magcache(table, max_skip=0),
        lambda: forecast(veto=-1.0),
    ):
        with pytest.raises(ConfigError):
            wrong()
