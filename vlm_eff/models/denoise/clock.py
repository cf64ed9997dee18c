"""The steps of a run, as the scheduler itself takes them."""

from __future__ import annotations

import functools
import math
import types
import weakref
from collections.abc import Callable
from typing import Any

from vlm_eff.core.denoise import Step

_WATCHED = ("set_timesteps", "step")
# pipelines may share a scheduler: it is wrapped once for all who follow it
_CLOCKS: weakref.WeakKeyDictionary[Any, list[Clock]] = weakref.WeakKeyDictionary()
_OURS: weakref.WeakSet[Any] = weakref.WeakSet()
# methods under way, by scheduler and name
_RUNNING: set[tuple[int, str]] = set()


class Clock:
    """Counts runs and steps of one scheduler instance.

    `set_timesteps` begins a run, which also ends one that was interrupted; `step` ends a step. Both are wrapped on the
    instance, with their signatures, and bound to it anew in copies: a pipeline may copy its scheduler.
    """

    def __init__(self, began: Callable[[], None], ended: Callable[[], None]) -> None:
        self._began, self._ended = began, ended
        # called in place of the scheduler's own `step`, with it and its arguments
        self.around: Callable[[Callable[[], Any], tuple[Any, ...], dict[str, Any]], Any] | None = None
        self.scheduler: Any = None
        self.run = -1
        self.index = 0
        self._steps: list[Step] = []
        # called with what the scheduler was given in place of the denoiser's output
        self.listeners: list[Callable[[Any], None]] = []

    def watch(self, scheduler: Any) -> None:
        """Follow this scheduler from now on, in place of the one before."""
        self.release()
        self.scheduler = scheduler
        _watch(scheduler, self)

    def release(self) -> None:
        """Leave the scheduler as it was."""
        if self.scheduler is not None:
            _unwatch(self.scheduler, self)
        self.scheduler = None

    def heard(self, name: str, given: Any = None) -> None:
        """A watched method of the scheduler has returned; given: its first argument."""
        if name == "set_timesteps":
            self.begin()
        else:
            for listener in self.listeners:
                listener(given)
            self.index += 1
            if self._steps and self.index >= len(self._steps):
                self._ended()

    def begin(self) -> None:
        """Begin a run."""
        self.run, self.index, self._steps = self.run + 1, 0, []
        self._began()

    def now(self, timestep: Any) -> Step:
        """The step that the denoiser is called for with `timestep`."""
        if self.run < 0:
            # attached in the middle of a run, or a pipeline that sets its steps in another way
            self.begin()
        if not self._steps:
            self._steps = read_steps(self.scheduler, timestep, self.run)
        if self.index >= len(self._steps):
            # more steps than were announced: nothing may be taken for granted of them
            known = self._steps[-1]
            return Step(self.index, self.index + 1, known.timestep, known.sigma, known.log_snr, self.run)
        return self._steps[self.index]


def is_flow(scheduler: Any) -> bool:
    """True for schedulers of flow matching, x = (1 - sigma) x0 + sigma noise."""
    config = scheduler.config
    named = type(scheduler).__name__.startswith("FlowM")
    asked = config.get("use_flow_sigmas", False) or config.get("prediction_type") == "flow_prediction"
    return bool(named or asked)


def read_steps(scheduler: Any, timestep: Any, run: int) -> list[Step]:
    """All steps of the run that the scheduler stands at the beginning of; one copy to the host."""
    times = [float(t) for t in scheduler.timesteps.tolist()]
    begin = getattr(scheduler, "begin_index", None)
    if begin is None:
        begin = _place(times, timestep)
    sigmas, flow = _sigmas(scheduler, times), is_flow(scheduler)
    left = range(begin, len(times))
    return [Step(i - begin, len(left), times[i], sigmas[i], log_snr(sigmas[i], flow), run) for i in left]


def log_snr(sigma: float, flow: bool) -> float:
    """log(signal^2 / noise^2) at a noise level, kept between -30 and 30."""
    sigma = min(max(sigma, 1e-7), 1 - 1e-7 if flow else 1e7)
    signal = 1 - sigma if flow else 1.0
    return min(max(2 * (math.log(signal) - math.log(sigma)), -30.0), 30.0)


def _place(times: list[float], timestep: Any) -> int:
    """Where a run begins whose scheduler does not say: pipelines that start from an image leave steps out in front."""
    try:
        value = float(timestep.flatten()[0]) if hasattr(timestep, "flatten") else float(timestep)
    except (TypeError, ValueError):
        return 0
    return times.index(value) if value in times else 0


def _sigmas(scheduler: Any, times: list[float]) -> list[float]:
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) >= len(times):
        return [float(s) for s in sigmas.tolist()][: len(times)]
    kept = getattr(scheduler, "alphas_cumprod", None)
    if kept is None:
        # nothing is known of the noise: time takes its place
        return [max(t, 0.0) / max(times[0], 1.0) for t in times]
    table = [float(a) for a in kept.tolist()]
    found = [min(max(table[min(max(round(t), 0), len(table) - 1)], 1e-12), 1 - 1e-12) for t in times]
    return [math.sqrt((1 - a) / a) for a in found]


def _watch(scheduler: Any, clock: Clock) -> None:
    clocks = _CLOCKS.setdefault(scheduler, [])
    clocks.append(clock)
    if len(clocks) > 1:
        return
    for name in _WATCHED:
        _wrap(scheduler, name, scheduler.__dict__.get(name))


def _unwatch(scheduler: Any, clock: Clock) -> None:
    clocks = _CLOCKS[scheduler]
    clocks.remove(clock)
    if clocks:
        return
    del _CLOCKS[scheduler]
    for name in _WATCHED:
        found = getattr(scheduler.__dict__.get(name), "__func__", None)
        if found not in _OURS:
            # somebody has wrapped ours since: with nobody listening it does what was there before
            continue
        before = found.before
        if before is None:
            del scheduler.__dict__[name]
        else:
            setattr(scheduler, name, before)


def _bound(method: Any, scheduler: Any, now: Any) -> Any:
    # in a copy of the scheduler, what was there before belongs to the copy too
    return types.MethodType(method.__func__, now) if getattr(method, "__self__", None) is scheduler else method


def _wrap(scheduler: Any, name: str, before: Any) -> None:
    own = getattr(type(scheduler), name)

    # the pipeline reads the signature to find out which keywords it may pass
    @functools.wraps(own)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        inner = functools.partial(own, self) if before is None else _bound(before, scheduler, self)
        key = (id(self), name)
        if key in _RUNNING:
            # inside another of ours, as in a copy of a watched scheduler that is watched too: it is told once
            return inner(*args, **kwargs)
        call = functools.partial(inner, *args, **kwargs)
        clocks = tuple(_CLOCKS.get(self, ()))
        for clock in clocks:
            if name == "step" and clock.around is not None:
                call = functools.partial(clock.around, call, args, kwargs)
        _RUNNING.add(key)
        try:
            made = call()
        finally:
            _RUNNING.discard(key)
        for clock in clocks:
            clock.heard(name, args[0] if args else kwargs.get("model_output"))
        return made

    watched.before = before  # type: ignore[attr-defined]
    _OURS.add(watched)
    # a method, not a function: a copy of the scheduler then has it bound to itself
    setattr(scheduler, name, types.MethodType(watched, scheduler))
