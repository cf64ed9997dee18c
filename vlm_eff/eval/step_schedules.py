"""Budgets of denoiser evaluations: which steps to compute on a pipeline of the user's own, measured on a few calls.

One full run tells how far off each step would be if it were predicted from earlier ones; dynamic programming
proposes a schedule by these; then schedules are tried and the error of their final latents decides, because errors
of steps in a row add up in ways that no sum of single ones foresees. Even steps are among what is tried.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vlm_eff.core.errors import InputError, explain
from vlm_eff.diffusion.budget import affordable, best_steps, check_evaluations, climb, fixed_steps
from vlm_eff.diffusion.policies import AtSteps, even_steps
from vlm_eff.diffusion.schedules import Schedule
from vlm_eff.diffusion.step_cache import StepCache
from vlm_eff.eval.measure import paired_times
from vlm_eff.eval.step_errors import Recorder
from vlm_eff.models.attach import attach
from vlm_eff.reference.machine import describe_device, package_versions

Steps = tuple[int, ...]


def calibrate_schedule(
    pipe: Any,
    cache: StepCache,
    calls: Sequence[Mapping[str, Any]],
    *,
    evaluations: int | None = None,
    time_ratio: float | None = None,
    weights: Literal["measured"] | Sequence[float] | None = None,
    trials: int = 16,
) -> Schedule:
    """Find the steps at which `cache` should compute on this pipeline, within a budget.

    cache:       a method such as `deepcache(branch=0)` or `forecast()`; its schedule is replaced
    calls:       keyword arguments of the pipeline, one set a call, with a "seed" in place of a generator and an output
                 type that gives latents or pixels as numbers ("latent", "np"); all with one number of steps
    evaluations: computed steps of a run; or time_ratio: share of the bare run's time, from which they follow by
                 timing the first call
    weights:     how much an error at each step matters to the proposal; "measured" tries each step alone (a run a step)
    trials:      schedules that are tried besides the proposal and even steps

    The last third of the calls (of two, the second) has no part in the search: a schedule that is worse than even
    steps there is given up. Give several: from one call of ten pictures, a schedule came out that was 1.5 dB worse than
    even steps on others. On these calls the result is never worse than even steps. Costs len(calls) full runs and as
    many within the budget for each schedule that is tried; the first full run keeps what is predicted at all steps (one
    tensor a step for forecasts and deepcache). Save it with `.write(path)`, use it as `deepcache(schedule=path)`.

    Facts: dynamic programming on errors of single steps alone was worse than even steps for small budgets in our study;
    hence the trials.

    Raises:
        InputError: no calls, calls with a generator or of different lengths, or a budget that cannot be kept.
    """
    _check(calls, evaluations, time_ratio)
    cache = dataclasses.replace(cache, signal=None, per_row=False)
    tries = _Tries(pipe, cache, calls)
    recorder, count = tries.recorder, tries.count
    fixed = fixed_steps(count, cache.warm_up, cache.cool_down)
    if evaluations is None:
        assert time_ratio is not None
        least = paired_times(
            lambda: tries.run(calls[0], Steps((0,))), lambda: tries.run(calls[0], None), pairs=3, warmup=1
        )
        evaluations = affordable(time_ratio, 1.0, least.ratio, count, len(fixed))
    check_evaluations(evaluations, count, len(fixed))

    table = recorder.table(cache)
    scale = tries.sensitivities(table) if weights == "measured" else weights or [1.0] * count
    if len(scale) != count:
        raise InputError(explain(f"{len(scale)} weights", f"one a step, {count}", "Give one for each step"))

    def cost(before: int | None, at: int, until: int) -> float:
        return math.fsum(float(scale[j]) * table(before, at, j) for j in range(at + 1, until))

    pairs = cache.predictor.depth > 1
    proposed = best_steps(cost, count, evaluations, warm_up=cache.warm_up, cool_down=cache.cool_down, pairs=pairs)
    even = _even(count, evaluations, fixed)
    start = min((even, proposed), key=tries.error)
    found = climb(start, tries.error, count, fixed=fixed, trials=trials)
    # the best on few pictures may be best on these alone
    steps = next(one for one in (found, proposed, even) if _safe(tries, one, even))
    return tries.schedule(steps, even, proposed)


def _safe(tries: _Tries, steps: Steps, even: Steps) -> bool:
    """Whether a schedule is no worse than even steps, on the calls that were searched and on those that were not."""
    return tries.error(steps) <= tries.error(even) and tries.held(steps) <= tries.held(even)


def _check(calls: Sequence[Mapping[str, Any]], evaluations: int | None, time_ratio: float | None) -> None:
    if not calls or any("generator" in call or "seed" not in call for call in calls):
        raise InputError(
            explain(
                "calls without a seed" if calls else "no calls",
                'at least one set of keyword arguments with "seed" and without "generator"',
                "Every schedule is tried from the same noise: give seeds",
            )
        )
    if (evaluations is None) == (time_ratio is None):
        raise InputError(
            explain("both budgets or none", "evaluations or time_ratio", "Give one of the two"),
        )


def _even(count: int, evaluations: int, fixed: frozenset[int]) -> Steps:
    """Even steps with the fixed ones among them."""
    chosen = set(fixed)
    for step in sorted(even_steps(count, evaluations)):
        if len(chosen) < evaluations:
            chosen.add(step)
    # where fixed steps took the place of even ones, the largest gap is halved until the budget is used up
    while len(chosen) < evaluations:
        known = [*sorted(chosen), count]
        at = max(range(len(known) - 1), key=lambda i: known[i + 1] - known[i])
        chosen.add((known[at] + known[at + 1]) // 2)
    return tuple(sorted(chosen))


class _Tries:
    """Runs of the pipeline: in full, recorded once, and under schedules, each only once."""

    def __init__(self, pipe: Any, cache: StepCache, calls: Sequence[Mapping[str, Any]]) -> None:
        self.pipe, self.cache, self.calls = pipe, cache, calls
        self.recorder = Recorder(cache)
        counts, self.full = [], []
        for number, call in enumerate(calls):
            # what is predicted is kept of the first call alone, how the latents move of all
            recorder = self.recorder if number == 0 else Recorder(cache, {}, self.recorder.moves)
            with attach(pipe, recorder) as handle:
                self.full.append(self._outputs(call))
            report = handle.stats().runs[-1]
            counts.append(report.steps)
            self.scheduler, self.family = report.scheduler, handle.stats().family
            self.size = next(iter(recorder.states))[3]
        if len(set(counts)) > 1:
            raise InputError(explain(f"calls of {sorted(set(counts))} steps", "one number", "Calibrate each alone"))
        self.count = counts[0]
        self._errors: dict[tuple[Steps, int], float] = {}
        # the last third of the calls is held out
        self._searched = len(calls) - len(calls) // 3 if len(calls) > 2 else 1

    def _outputs(self, call: Mapping[str, Any]) -> Tensor:
        named = {name: value for name, value in call.items() if name != "seed"}
        made = self.pipe(**named, generator=torch.Generator().manual_seed(int(call["seed"])))[0]
        if not isinstance(made, Tensor | np.ndarray):
            raise InputError(
                explain(
                    f"a pipeline that returned {type(made).__name__}",
                    "latents or pixels as numbers",
                    'Put output_type="latent" (or "np") into the calls',
                )
            )
        return torch.as_tensor(made).detach().float().cpu()

    def run(self, call: Mapping[str, Any], steps: Steps | None) -> Tensor:
        """What a call returns under a schedule; None for the bare pipeline."""
        if steps is None:
            return self._outputs(call)
        with attach(self.pipe, dataclasses.replace(self.cache, policy=AtSteps(steps, self.count))):
            return self._outputs(call)

    def error(self, steps: Steps) -> float:
        """||latents - full|| / ||full||, root mean square over the calls that are searched."""
        return _rms(self._off(steps, number) for number in range(self._searched))

    def held(self, steps: Steps) -> float:
        """The same over the calls that are held out; 0 where none is."""
        rest = range(self._searched, len(self.calls))
        return _rms(self._off(steps, number) for number in rest) if rest else 0.0

    def over_all(self, steps: Steps) -> float:
        """The same over all calls."""
        return _rms(self._off(steps, number) for number in range(len(self.calls)))

    def _off(self, steps: Steps, number: int) -> float:
        if (steps, number) not in self._errors:
            full = self.full[number]
            made = self.run(self.calls[number], steps)
            self._errors[steps, number] = float((made - full).norm() / full.norm())
        return self._errors[steps, number]

    def sensitivities(self, table: Callable[[int | None, int, int], float]) -> list[float]:
        """Final error that each step makes when it alone is predicted, by the error at that step itself."""
        every = tuple(range(self.count))
        found = [0.0]
        for j in every[1:]:
            here = table(j - 2 if j > 1 else None, j - 1, j)
            found.append(self.error((*every[:j], *every[j + 1 :])) / max(here, 1e-9))
        return found

    def schedule(self, steps: Steps, even: Steps, proposed: Steps) -> Schedule:
        """The result, with what it was found from."""
        guidance = self.calls[0].get("guidance_scale", self.calls[0].get("true_cfg_scale"))
        return Schedule(
            method=self.cache.method,
            site=repr(self.cache.site),
            model=self.family,
            pipeline=type(self.pipe).__name__,
            scheduler=self.scheduler,
            count=self.count,
            steps=steps,
            error=self.over_all(steps),
            uniform=even,
            uniform_error=self.over_all(even),
            proposed=proposed,
            proposed_error=self.over_all(proposed),
            tried=len({tried for tried, _ in self._errors}),
            guidance=None if guidance is None else float(guidance),
            size=self.size,
            calls=len(self.calls),
            device=describe_device(self.pipe.device),
            date=datetime.now(UTC).date().isoformat(),
            band=self.recorder.band(self.count),
            packages={**package_versions(), "diffusers": version("diffusers")},
        )


def _rms(values: Iterable[float]) -> float:
    squares = [value * value for value in values]
    return math.sqrt(math.fsum(squares) / len(squares))
