"""Calibrated schedules: what they were measured on holds, what they are used on is checked."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.diffusion.checks import relative
from tests.tiny.pipelines import TinyPipeline, tiny_pipeline, with_scheduler
from vlm_eff import attach
from vlm_eff.core.config import from_dict, to_dict
from vlm_eff.core.errors import ConfigError, InputError
from vlm_eff.core.plugin import Plugin
from vlm_eff.diffusion import deepcache, forecast
from vlm_eff.diffusion.schedules import CalibrationWarning, Guarded, Schedule, read_schedule
from vlm_eff.diffusion.step_cache import StepCache
from vlm_eff.eval import step_schedules
from vlm_eff.eval.step_errors import Recorder
from vlm_eff.eval.step_schedules import calibrate_schedule

STEPS = 6


def calls(tiny: TinyPipeline, steps: int = STEPS, **more: Any) -> list[dict[str, Any]]:
    one = {**tiny.call, "num_inference_steps": steps, "output_type": "latent", **more}
    return [{**one, "seed": seed} for seed in (0, 1)]


def calibrated(cache: StepCache, family: str = "sd", **more: Any) -> Schedule:
    tiny = tiny_pipeline(family)
    return calibrate_schedule(tiny.pipe, cache, calls(tiny), **{"evaluations": 3, "trials": 1, **more})


@pytest.fixture(scope="module")
def found() -> Schedule:
    return calibrated(deepcache(), trials=0)


def never_worse(cache: StepCache) -> Schedule:
    """The error that it states is the error that it has, and even steps have no smaller one."""
    tiny = tiny_pipeline("sd")
    made = calibrated(cache)
    assert len(made.steps) == len(made.uniform) == len(made.proposed) == 3

    def measured(steps: tuple[int, ...]) -> float:
        squares = []
        for seed in (0, 1):
            bare = tiny(STEPS, seed)
            plugin = deepcache(schedule=steps) if made.method == "deepcache" else forecast(schedule=steps)
            with attach(tiny.pipe, plugin):
                squares.append(relative(tiny(STEPS, seed), bare) ** 2)
        return float((sum(squares) / 2) ** 0.5)

    assert measured(made.steps) == pytest.approx(made.error, rel=1e-4)
    assert measured((0, 2, 4)) == pytest.approx(made.uniform_error, rel=1e-4)
    assert made.error <= made.uniform_error
    return made


@pytest.mark.parametrize("cache", [deepcache(), forecast()], ids=["deepcache", "forecast"])
def test_never_worse_than_even_steps(cache: StepCache) -> None:
    never_worse(cache)


def test_a_worse_schedule_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    worst = ((0, 1, 2), (0, 4, 5))
    monkeypatch.setattr(step_schedules, "climb", lambda start, error, count, **named: max(worst, key=error))
    monkeypatch.setattr(step_schedules, "_safe", lambda *given: True)
    with pytest.raises(AssertionError):
        never_worse(deepcache())


def test_a_schedule_that_is_worse_on_calls_held_out_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_schedules, "climb", lambda start, error, count, **named: (0, 1, 3))
    monkeypatch.setattr(step_schedules._Tries, "error", lambda self, steps: 0.5)
    monkeypatch.setattr(step_schedules._Tries, "held", lambda self, steps: 0.1 if steps == (0, 2, 4) else 0.2)
    assert calibrated(deepcache()).steps == (0, 2, 4)
    monkeypatch.setattr(step_schedules._Tries, "held", lambda self, steps: 0.1)
    assert calibrated(deepcache()).steps == (0, 1, 3)


def errors_are_as_defined(order: int) -> None:
    tiny = tiny_pipeline("sd")
    outputs: list[Tensor] = []
    hook = tiny.denoiser.register_forward_hook(lambda m, a, out: outputs.append(out[0].clone()))
    bare = tiny(STEPS)
    hook.remove()
    recorder = Recorder(forecast(order=order))
    with attach(tiny.pipe, recorder):
        assert torch.equal(tiny(STEPS), bare)
    table = recorder.table(recorder.cache)
    for before, at, j in ((0, 2, 4), (1, 2, 5), (3, 4, 5), (None, 0, 3)):
        slope = 0.0 if before is None or order == 0 else (outputs[at] - outputs[before]) / (at - before)
        want = (outputs[at] + (j - at) * slope - outputs[j]).abs().sum() / outputs[j].abs().sum()
        assert table(before, at, j) == pytest.approx(float(want), rel=1e-4)


@pytest.mark.parametrize("order", [0, 1])
def test_errors_are_as_defined(order: int) -> None:
    errors_are_as_defined(order)


def test_errors_of_another_step_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Recorder.table

    def late(self: Recorder, cache: StepCache) -> Any:
        table = real(self, cache)
        return lambda before, at, j: table(before, at, min(j + 1, STEPS - 1))

    monkeypatch.setattr(Recorder, "table", late)
    with pytest.raises(AssertionError):
        errors_are_as_defined(1)


def test_two_calls_a_step_and_weights() -> None:
    made = calibrated(forecast(), "flux", weights="measured", trials=1)
    assert (made.error <= made.uniform_error and made.guidance is None) or made.guidance == 4.0
    assert made.tried >= STEPS - 1
    weighted = calibrated(forecast(), weights=[1.0] * STEPS, trials=0)
    assert weighted.error <= weighted.uniform_error


def test_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # a run that skips all it may takes a third of the time: half of it buys 1 + 5 * (1/2 - 1/3) / (2/3) steps
    monkeypatch.setattr(step_schedules, "paired_times", lambda *a, **k: SimpleNamespace(ratio=1 / 3))
    assert len(calibrated(deepcache(), evaluations=None, time_ratio=0.5, trials=0).steps) == 2


def test_saved_and_used(found: Schedule, tmp_path: Path) -> None:
    tiny, made = tiny_pipeline("sd"), found
    path = made.write(tmp_path / "sd.json")
    assert read_schedule(path) == made
    assert made.scheduler == "DDIMScheduler" and made.guidance == 5.0 and made.size == (2, 8, 16, 16)
    plugin = deepcache(schedule=str(path))
    assert from_dict(to_dict(plugin)) == plugin
    with attach(tiny.pipe, plugin) as handle:
        got = tiny(STEPS)
    assert handle.stats().runs[-1].computed_steps == list(made.steps)
    with attach(tiny.pipe, deepcache(schedule=made.steps)):
        assert torch.equal(tiny(STEPS), got)
    with attach(tiny.pipe, forecast(schedule=made.steps)) as handle:
        tiny(STEPS)
    assert handle.stats().runs[-1].computed_steps == list(made.steps)


def test_used_for_something_else_it_warns(found: Schedule, tmp_path: Path) -> None:
    path = str(found.write(tmp_path / "sd.json"))
    tiny = tiny_pipeline("sd")
    with warnings.catch_warnings(), attach(tiny.pipe, deepcache(schedule=path)) as handle:
        warnings.simplefilter("error")
        tiny(STEPS)
        with pytest.warns(CalibrationWarning, match="stretched to 12") as heard:
            tiny(2 * STEPS)
    assert len(heard) == 1 and handle.stats().runs[-1].notes["schedule_mapped_from"] == STEPS
    assert len(handle.stats().runs[-1].computed_steps) == 3
    euler = with_scheduler(tiny, "EulerDiscrete")
    for other, plugin, word in ((euler, deepcache(schedule=path), "Euler"), (tiny, forecast(schedule=path), "method")):
        with pytest.warns(CalibrationWarning, match=word):
            handle = attach(other.pipe, plugin)
        other(STEPS)
        handle.detach()


def guarded(tiny: TinyPipeline, plugin: Plugin, **call: Any) -> tuple[Tensor, float]:
    with attach(tiny.pipe, plugin) as handle:
        got = tiny(STEPS, **call)
    return got, handle.stats().runs[-1].notes.get("guarded", 0.0)


def test_the_guard(found: Schedule, tmp_path: Path) -> None:
    tiny = tiny_pipeline("sd")
    path = str(found.write(tmp_path / "sd.json"))
    plain, _ = guarded(tiny, deepcache(schedule=path))
    same, gave_up = guarded(tiny, deepcache(schedule=path, guard=2.0))
    assert torch.equal(same, plain) and gave_up == 0
    # latents a hundred times too large move by other shares of themselves
    noise = 0.02 * torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    moved, gave_up = guarded(tiny, deepcache(schedule=path, guard=1.5), latents=noise)
    assert gave_up > 0
    assert relative(moved, tiny(STEPS, latents=noise)) < relative(
        guarded(tiny, deepcache(schedule=path), latents=noise)[0], tiny(STEPS, latents=noise)
    )


def test_a_band_that_nothing_fits_computes_all() -> None:
    tiny = tiny_pipeline("sd")
    impossible = dataclasses.replace(deepcache(3), policy=Guarded(deepcache(3).policy, ((1e6, 1e6),) * STEPS))
    got, gave_up = guarded(tiny, impossible)
    assert torch.equal(got, tiny(STEPS)) and gave_up == STEPS - 2
    with attach(tiny.pipe, impossible):
        assert torch.equal(tiny(STEPS), got)


def test_what_is_refused(tmp_path: Path) -> None:
    tiny = tiny_pipeline("sd")
    good = calls(tiny, 2)
    mixed = [good[0], calls(tiny, 3)[0]]
    seedless = [{k: v for k, v in good[0].items() if k != "seed"}]
    pictures = [{**good[0], "output_type": "pil"}]
    for wrong in ([], seedless, mixed, pictures, [{**good[0], "generator": torch.Generator()}]):
        with pytest.raises(InputError):
            calibrate_schedule(tiny.pipe, deepcache(), wrong, evaluations=2)
    for budget in ({}, {"evaluations": 2, "time_ratio": 0.5}, {"evaluations": 0}, {"evaluations": 3}):
        with pytest.raises(InputError):
            calibrate_schedule(tiny.pipe, deepcache(), good, **budget)
    with pytest.raises(InputError, match="weights"):
        calibrate_schedule(tiny.pipe, deepcache(), good, evaluations=1, weights=[1.0])
    torn = tmp_path / "torn.json"
    torn.write_text(json.dumps({"steps": [0, 1]}))
    for path in (str(torn), str(tmp_path / "none.json")):
        with pytest.raises(InputError, match="no schedule"):
            deepcache(schedule=path)
    with pytest.raises(ConfigError, match="guard"):
        deepcache(schedule=(0, 3), guard=2.0)
    with pytest.raises(ConfigError, match="margin"):
        Guarded(deepcache().policy, ((0.0, 1.0),), 0.5)
