"""Broken pieces of the engine of diffusion pipelines, and the promise that has to notice each."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any

from tests.diffusion import checks
from tests.sabotage.broken import always, prop
from tests.sabotage.saboteurs import Saboteur
from tests.tiny.pipelines import TinyPipeline, make_pipeline, with_scheduler
from vlm_eff.core.plugin import Plugin
from vlm_eff.diffusion import fora, forecast
from vlm_eff.models.denoise.state import UnitState

DENOISE = "vlm_eff.models.denoise"
RUNTIME, CLOCK, STORE = f"{DENOISE}.runtime.DenoiseRuntime", f"{DENOISE}.clock", f"{DENOISE}.state.Store"
EVERY, LINE = "vlm_eff.diffusion.policies.Every.__call__", forecast(interval=2)


def on(check: Callable[[TinyPipeline, Plugin], None]) -> Callable[[str, Plugin], None]:
    """The check on a pipeline of its own; "family scheduler" has another scheduler."""

    @functools.wraps(check)
    def call(name: str, plugin: Plugin) -> None:
        family, _, scheduler = name.partition(" ")
        tiny = make_pipeline(family)
        check(with_scheduler(tiny, scheduler) if scheduler else tiny, plugin)

    return call


def keeps_everything(original: Any) -> Any:
    """What an interrupted run has left is there when the next one begins."""

    def began(self: Any) -> None:
        self.store.clear = lambda: None
        original(self)
        del self.store.clear

    return began


def never_starts_over(original: Any) -> Any:
    """Steps go on where the last run ended."""

    def begin(self: Any) -> None:
        index = self.index
        original(self)
        self.index = index

    return begin


def of_nobody(original: Any) -> Any:
    """One state for all pipelines, as where it is kept on a class."""
    states: dict[Any, UnitState] = {}
    return lambda self, owner, like: states.setdefault(owner, UnitState())


def by_counting(original: Any) -> Any:
    calls = itertools.count()
    return lambda self, denoiser, context, named: next(calls)


def leaves_a_forward(original: Any) -> Any:
    def remove(self: Any) -> None:
        original(self)
        self.module.forward = self.module.forward

    return remove


def without_signature(original: Any) -> Any:
    def wrap(scheduler: Any, name: str, before: Any) -> None:
        original(scheduler, name, before)
        del vars(scheduler)[name].__func__.__wrapped__
        assert "generator" not in inspect.signature(getattr(scheduler, name)).parameters

    return wrap


def keeps_the_very_tensors(original: Any) -> Any:
    return lambda self, asked, streams, *, own: original(self, asked, streams, own=True)


DENOISE_SABOTEURS: dict[str, Saboteur] = {
    "steps are predicted that nobody wanted predicted": Saboteur(
        EVERY, always(True), on(checks.nothing_is_bit_identical), ("dit", forecast(interval=1))),
    "the pipeline cannot read the scheduler's signature": Saboteur(
        f"{CLOCK}._wrap", without_signature,
        on(checks.nothing_is_bit_identical), ("sd EulerAncestralDiscrete", forecast(interval=1))),
    "nothing is predicted": Saboteur(
        EVERY, always(False), on(checks.it_changes_something_and_says_so), ("dit", LINE)),
    "predictions count as computed": Saboteur(
        f"{RUNTIME}._skipped", always(None), on(checks.it_changes_something_and_says_so), ("dit", LINE)),
    "every call is a branch of its own": Saboteur(
        f"{DENOISE}.branch.Branches.of", by_counting, on(checks.it_changes_something_and_says_so), ("dit", LINE)),
    "the branches are one": Saboteur(
        f"{DENOISE}.branch.Branches.of", always(0),
        on(checks.each_branch_is_its_own), ("flux", forecast(interval=2, order=0))),
    "a forward stays on the module": Saboteur(
        f"{DENOISE}.chain.Chain.remove", leaves_a_forward, on(checks.detach_restores), ("dit", LINE)),
    "the registry of hooks stays": Saboteur(
        f"{DENOISE}.chain.Chain.remove", always(None), on(checks.detach_restores), ("dit", fora(interval=2))),
    "the scheduler stays wrapped": Saboteur(
        f"{CLOCK}._unwatch", always(None), on(checks.detach_restores), ("dit", LINE)),
    "steps are counted on and on": Saboteur(
        f"{CLOCK}.Clock.begin", never_starts_over,
        on(checks.every_run_is_the_same), ("dit", forecast(interval=3))),
    "a run remembers the one before": Saboteur(
        f"{STORE}.clear", always(None), on(checks.every_run_is_the_same), ("dit", LINE)),
    "an interrupted run is remembered": Saboteur(
        f"{RUNTIME}._began", keeps_everything, on(checks.an_interrupted_run_harms_nothing), ("dit", LINE)),
    "pipelines share what is kept": Saboteur(
        f"{STORE}.of", of_nobody, checks.two_pipelines_do_not_meet, ("dit", LINE)),
    "a pause stops nothing": Saboteur(
        f"{RUNTIME}.active", prop(lambda value: True), on(checks.paused_is_bare), ("dit", LINE)),
    "what is kept is the pipeline's too": Saboteur(
        f"{RUNTIME}.keep", keeps_the_very_tensors, on(checks.nobody_writes_into_what_is_kept), ("wan", LINE)),
}  # fmt: skip
