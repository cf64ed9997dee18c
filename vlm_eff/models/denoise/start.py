"""Where a run starts from: the steps before a kept point are answered without the denoiser, then the point takes over.

Pipelines own their loop, so it goes through all of its steps. At the ones left out the denoiser returns zeros, the
scheduler takes its step with them (it draws what random numbers it would), and its result is thrown away. At the
last of them the kept latents and the solver's kept history take the place of what it made of the zeros.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vlm_eff.core.denoise import DenoisePlugin, StartSite
from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.core.handle import Undo
from vlm_eff.models.denoise.branch import batched_guidance
from vlm_eff.models.denoise.chain import Forward
from vlm_eff.models.denoise.rows import Streams
from vlm_eff.models.denoise.runtime import DenoiseRuntime
from vlm_eff.models.denoise.view import Call

# what a run is conditioned on beside the prompt does not reach the denoiser by itself
_IMAGES = ("image", "mask_image", "control_image", "video", "mask", "source_latents")
_LATENTS_AND_TIME = ("sample", "hidden_states", "x", "timestep", "timesteps", "t")
_PROGRESS = ("_num_timesteps", "_current_timestep", "_interrupt")
# between the ledger and all other plugins of the denoiser
START = -50


@dataclass(frozen=True)
class Point:
    """Latents [R', ...] that a run had after a step, and what its solver remembered then."""

    sample: Tensor
    state: dict[str, Any]


@dataclass(frozen=True)
class Trajectory:
    """What is kept of a run that was computed from its beginning.

    settings: of pipeline, weights, scheduler and sizes      parts: its key, as the plugin made it
    count:    number of its steps                            points: by number of steps behind them
    """

    settings: str
    parts: dict[str, Tensor]
    count: int
    points: dict[int, Point]


@dataclass(frozen=True)
class StartView:
    """A run that begins.

    settings: as in `Trajectory`                  given: all tensors that the denoiser was called with in the first
    count:    number of its steps                 step, by branch and name, but for latents and time
    behind:   steps that are computed already     latents: after those steps, None before the first
    """

    settings: str
    given: dict[str, Tensor]
    count: int
    behind: int
    latents: Tensor | None


@dataclass(frozen=True)
class Start:
    """What a plugin answers to a `StartView`.

    parts: key of this run       step, point: where it resumes; None computes it all
    notes: what the report of the run says
    """

    parts: dict[str, Tensor]
    step: int = 0
    point: Point | None = None
    notes: dict[str, float] = field(default_factory=dict)


@dataclass
class _Run:
    settings: str
    count: int
    decide: int
    given: dict[str, Tensor] = field(default_factory=dict)
    tables: set[int] = field(default_factory=set)
    answer: Start | None = None
    points: dict[int, Point] = field(default_factory=dict)
    saved: int = 0


class StartDriver:
    """Asks a plugin where a run starts from, and tells it afterwards what the run went through.

    A run is recognised by the prompt before its first step where guidance comes in one batch, and after one step
    elsewhere: only then all prompts of the guidance were seen.
    """

    def __init__(self, runtime: DenoiseRuntime, site: StartSite, plugin: DenoisePlugin) -> None:
        self._runtime, self._site, self._plugin = runtime, site, plugin
        self._run: _Run | None = None
        self._forms: dict[Any, tuple[Streams, list[Tensor]]] = {}
        pipe = runtime.denoising.pipe
        taken = [name for name in _IMAGES if name in inspect.signature(type(pipe).__call__).parameters]
        if taken:
            raise CapabilityError(
                explain(
                    f"{plugin.name} on {type(pipe).__name__}, whose runs depend on {taken} too",
                    "pipelines that start from noise and a prompt",
                    "Leave it off here",
                )
            )
        self._weights = _weights(runtime)

    def install(self, undo: Undo) -> None:
        for module in self._runtime.denoising.denoisers.values():
            self._runtime.chains.around(module, self._link, undo, order=START)
        self._runtime.clock.around = self._step

        def leave() -> None:
            self._runtime.clock.around = None

        undo.push(leave)

    def began(self) -> None:
        """A run begins."""
        self._run = None

    def ended(self) -> None:
        """The last step of a run is done: what was computed from the beginning may be kept."""
        run, self._run = self._run, None
        if run is not None and run.answer is not None and run.answer.point is None and run.points:
            self._plugin.at(self._site, Trajectory(run.settings, run.answer.parts, run.count, run.points))

    # ---------------------------------------------------------------- the denoiser

    def _link(self, module: nn.Module, inner: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self._runtime.call
        if call is None or not self._runtime.active:
            return inner(*args, **kwargs)
        run = self._run
        if run is None:
            if call.step.index != 0:
                return inner(*args, **kwargs)
            run = self._run = self._begin(call)
        if call.step.index == 0:
            run.given |= _given(call)
            if run.decide == 0 and run.answer is None:
                self._decide(run, 0, None)
        kind = (call.denoiser, call.branch, tuple(call.latents.shape), call.latents.dtype)
        known = self._forms.get(kind)
        left_out = run.answer is not None and run.answer.point is not None and call.step.index < run.answer.step
        if left_out and known is not None:
            call.factor = 0.0
            run.saved += 1
            self._runtime.ledger.now.notes["evaluations_saved"] = float(run.saved)
            form, like = known
            return form.around(tuple(torch.zeros_like(t, device=call.latents.device) for t in like))
        made = inner(*args, **kwargs)
        if known is None:
            streams = Streams(made)
            self._forms[kind] = streams.skeleton, [t.new_empty(()).expand(t.shape) for t in streams.tensors]
        return made

    def _begin(self, call: Call) -> _Run:
        scheduler = self._runtime.clock.scheduler
        decide = max(self._site.look, 0 if batched_guidance(call.latents) else 1)
        # what another plugin approximates is not what the bare model goes through
        others = [repr(plugin) for plugin in self._runtime.plugins if plugin is not self._plugin]
        settings = _settings(self._runtime, call, self._weights + repr(others))
        tables = {id(value) for value in vars(scheduler).values() if isinstance(value, Tensor)}
        return _Run(settings, call.step.count, decide, tables=tables)

    # ---------------------------------------------------------------- the scheduler

    def _step(self, call: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run, made = self._run, call()
        if run is None or not self._runtime.active:
            return made
        scheduler, behind = self._runtime.clock.scheduler, self._runtime.clock.index + 1
        if run.answer is None and behind == run.decide:
            self._decide(run, behind, _sample(made))
        answer = run.answer
        if answer is not None and answer.point is not None:
            if behind > answer.step:
                return made
            if behind < answer.step:
                # what was made of zeros may grow without bounds
                return _replace(made, kwargs["sample"] if "sample" in kwargs else args[2])
            _restore(scheduler, answer.point.state, _sample(made).device)
            return _replace(made, answer.point.sample.to(_sample(made), copy=True))
        if behind < run.count and behind in {round(share * run.count) for share in self._site.keep}:
            run.points[behind] = Point(_sample(made).detach().clone(), _remembered(scheduler, run.tables))
        return made

    def _decide(self, run: _Run, behind: int, latents: Tensor | None) -> None:
        answer = self._plugin.at(self._site, StartView(run.settings, run.given, run.count, behind, latents))
        assert isinstance(answer, Start)
        run.answer = answer
        self._runtime.ledger.now.notes.update(answer.notes)


def _given(call: Call) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def look(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                look(f"{name}.{key}", item)
        elif isinstance(value, list | tuple):
            for number, item in enumerate(value):
                look(f"{name}.{number}", item)

    for name, value in call.named.items():
        if name not in _LATENTS_AND_TIME:
            look(f"{call.denoiser}.{call.branch}.{name}", value)
    return found


def _weights(runtime: DenoiseRuntime) -> str:
    marks = []
    for name, module in runtime.denoising.denoisers.items():
        parameters = list(module.parameters())
        marks.append((name, type(module).__name__, [float(p.detach().double().sum()) for p in parameters[:2]]))
        marks.append((name, len(parameters), sorted(getattr(module, "peft_config", {}))))
    return repr(marks)


def _settings(runtime: DenoiseRuntime, call: Call, weights: str) -> str:
    pipe, scheduler = runtime.denoising.pipe, runtime.clock.scheduler
    # most pipelines keep the strength of their guidance so
    own = {
        name: value
        for name, value in vars(pipe).items()
        if name.startswith("_") and name not in _PROGRESS and isinstance(value, int | float | str | bool)
    }
    latents = (tuple(call.latents.shape), str(call.latents.dtype), call.step.count)
    config = {key: str(value) for key, value in scheduler.config.items() if not key.startswith("_")}
    times = scheduler.timesteps.tolist()
    text = repr((type(pipe).__name__, weights, sorted(own.items()), latents, type(scheduler).__name__))
    return hashlib.sha256((text + repr((sorted(config.items()), times))).encode()).hexdigest()


def _sample(made: Any) -> Tensor:
    found: Tensor = made[0] if isinstance(made, tuple) else made.prev_sample
    return found


def _replace(made: Any, sample: Tensor) -> Any:
    if isinstance(made, tuple):
        return (sample, *made[1:])
    made["prev_sample"] = sample
    return made


def _remembered(scheduler: Any, tables: set[int]) -> dict[str, Any]:
    """What a solver remembers of its last steps; the tables that it had before the first are no part of it."""
    return {
        name: _copy(value)
        for name, value in vars(scheduler).items()
        if _plain(value) and id(value) not in tables and name not in ("_internal_dict", "num_inference_steps")
    }


def _restore(scheduler: Any, state: dict[str, Any], device: torch.device) -> None:
    for name, value in state.items():
        now = getattr(scheduler, name, None)
        setattr(scheduler, name, _copy(value, now.device if isinstance(now, Tensor) else device))


def _plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str | Tensor)


def _copy(value: Any, device: torch.device | None = None) -> Any:
    if isinstance(value, list):
        return [_copy(item, device) for item in value]
    if isinstance(value, Tensor):
        return value.detach().to(value.device if device is None or value.dim() == 0 else device, copy=True)
    return value
