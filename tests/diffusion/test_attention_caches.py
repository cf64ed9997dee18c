"""Caches of attention: which steps each kind is computed at, in which branch, and what stands in for the others."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch

from tests.tiny.pipelines import SEQUENTIAL, TinyPipeline, tiny_pipeline
from vlm_eff import attach, plugin
from vlm_eff.core.denoise import Step
from vlm_eff.core.errors import ConfigError
from vlm_eff.diffusion import broadcast, fastercache, pab, tgate
from vlm_eff.diffusion.broadcast import InBand, Rising
from vlm_eff.diffusion.step_cache import StepCache
from vlm_eff.models.denoise.parts import find_parts
from vlm_eff.models.denoise.state import Past, Unit, UnitState
from vlm_eff.models.denoise.view import Call, UnitView


def view(index: int, count: int = 20, kind: str = "self", timestep: float | None = None, past: Any = ()) -> UnitView:
    """A unit at a step of a run, with outputs of earlier steps."""

    def step(number: int) -> Step:
        return Step(number, count, 1000 * (1 - number / count) if timestep is None else timestep, 0.0, 0.0)

    history = [Past((torch.tensor([[value]]),), [step(number)]) for number, value in past]
    return UnitView(
        Unit("attn", kind), Call("unet", step(index), 0, torch.zeros(1, 1), {}), torch.zeros(1, 1), UnitState(history)
    )


def skipped(policy: Any, kind: str, count: int = 20) -> list[int]:
    return [i for i in range(count) if policy(view(i, count, kind), None, False)]


def computed(tiny: TinyPipeline, method: Any, steps: int, branches: int = 1) -> dict[tuple[str, int], list[int]]:
    """Steps at which the last attention of each kind really ran, by kind and branch."""
    calls: list[int] = []
    found: dict[tuple[str, int], list[int]] = defaultdict(list)

    def note(kind: str) -> Any:
        at = lambda: len(calls) - 1  # noqa: E731
        return lambda m, args: found[kind, at() % branches].append(at() // branches)

    hooks = [tiny.denoiser.register_forward_pre_hook(lambda m, args: calls.append(1))]
    for part in {part.kind: part for part in find_parts(tiny.denoiser, ("self", "cross"))}.values():
        hooks.append(part.module.to_q.register_forward_pre_hook(note(part.kind)))
    with attach(tiny.pipe, method):
        tiny(steps)
    for hook in hooks:
        hook.remove()
    return found


def test_the_pyramid() -> None:
    policy = pab().policy
    assert skipped(policy, "self") == [5, 7, 9, 11, 13, 15, 17]
    assert skipped(policy, "temporal") == [i for i in range(4, 18) if i % 4]
    assert skipped(policy, "cross") == [i for i in range(4, 18) if i % 6]
    assert skipped(policy, "mlp") == []


def test_the_published_band_is_of_timesteps() -> None:
    faithful, ours = pab(faithful=True).policy, pab().policy
    # on plain timesteps both say the same, but for the open end
    assert set(skipped(ours, "self")) == set(skipped(faithful, "self"))
    # a shifted flow is still at 900 in the middle of its run
    late = view(11, timestep=900.0)
    assert ours(late, None, False) and not faithful(late, None, False)


@pytest.mark.parametrize("family", SEQUENTIAL)
def test_branches_take_the_same_steps(family: str) -> None:
    # with range 2, a counter of calls would compute one branch at every step, and never the other
    found = computed(tiny_pipeline(family), pab(start=0.0, stop=1.0, cross=3), 6, branches=2)
    assert found["self", 0] == found["self", 1] == [0, 2, 4]
    if family == "wan":
        assert found["cross", 0] == found["cross", 1] == [0, 3]


def test_calls_that_are_counted_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    count = [-1]

    def parity(self: InBand, at: UnitView, change: Any, forced: bool) -> bool:
        count[0] += at.unit.name == "blocks.0.attn1"
        return count[0] % 2 == 1

    monkeypatch.setattr(InBand, "__call__", parity)
    found = computed(tiny_pipeline("wan"), pab(start=0.0), 6, branches=2)
    assert found["self", 0] == [0, 1, 2, 3, 4, 5] and found["self", 1] == [0]


def test_attention_goes_on_where_it_went() -> None:
    # half of the band is over: the last value and half of its change
    made = Rising(0.5, 1.0)(view(15, past=[(12, 4.0), (14, 6.0)]))
    assert float(made[0]) == 7.0
    assert float(Rising(0.5, 1.0)(view(15, past=[(14, 6.0)]))[0]) == 6.0
    assert float(Rising(0.5, 1.0)(view(4, past=[(2, 4.0), (3, 6.0)]))[0]) == 6.0


def test_a_weight_that_does_not_rise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "share", lambda step: 1.0)
    assert float(Rising(0.5, 1.0)(view(15, past=[(12, 4.0), (14, 6.0)]))[0]) == 8.0


def test_the_first_step_is_computed_inside_the_band() -> None:
    # diffusers reads an empty cache there
    tiny = tiny_pipeline("wan")
    found = computed(tiny, fastercache(start=0.0, guidance_interval=1, interval=3), 4, branches=2)
    assert found["self", 0] == found["self", 1] == [0, 3]


def test_an_empty_cache_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    # without the check of what is known, prediction comes first
    with attach(tiny_pipeline("wan").pipe, pab()):
        tiny_pipeline("wan")(2)
        monkeypatch.setattr(StepCache, "at", lambda self, site, at: self.predictor(at))
        with pytest.raises(IndexError):
            tiny_pipeline("wan")(2)


@pytest.mark.parametrize("family", ["wan", "sd"])
def test_the_gate(family: str) -> None:
    tiny = tiny_pipeline(family)
    found = computed(tiny, tgate(gate=0.4, warm_up=1, interval=2, unguided=False), 10, 2 if family == "wan" else 1)
    assert found["cross", 0] == [0, 1, 2, 3, 4]
    assert found["self", 0] == [0, 1, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("family", ["sd", "wan"])
def test_behind_the_gate_one_half_is_left(family: str) -> None:
    tiny = tiny_pipeline(family)
    with attach(tiny.pipe, tgate(gate=0.4)) as handle:
        tiny(10)
        run = handle.stats().runs[-1]
    assert run.notes["guidance_whole"] + run.notes["guidance_half"] >= 9 and run.notes["guidance_half"] == 5
    halves = [call for call in run.calls if call.step > 4]
    assert all(call.computed <= 0.5 for call in halves if family == "sd")
    assert sum(call.computed for call in halves) < 5.0


def test_cross_attention_behind_the_gate_is_the_conditional_one() -> None:
    tiny, calls = tiny_pipeline("sd"), []
    part = find_parts(tiny.denoiser, ("cross",))[-1].module
    hook = part.register_forward_hook(lambda m, args, out: calls.append(out.clone()))
    with attach(tiny.pipe, tgate(gate=0.4)):
        tiny(10)
    hook.remove()
    assert [len(one) for one in calls] == [2] * 5 + [1] * 5
    assert all(torch.equal(one, calls[5]) for one in calls[6:])
    near = [float((half - calls[5][0]).norm()) for half in calls[4]]
    assert near[1] < near[0]


def test_settings() -> None:
    for wrong in (lambda: pab(spatial=0), lambda: pab(start=0.9, stop=0.1), lambda: tgate(gate=2.0)):
        with pytest.raises(ConfigError):
            wrong()
    with pytest.raises(ConfigError):
        fastercache(split="half")
    assert plugin("pab:cross=3") == pab(cross=3)
