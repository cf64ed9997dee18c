"""Another scheduler on a pipeline: built for the model, tried on data with a known answer, and taken off again.

Everything is checked before anything is attached. While the handle is paused the pipeline has its own scheduler.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from vlm_eff.core.denoise import DenoisePlugin, SamplerSite
from vlm_eff.core.errors import CapabilityError, StateError, explain
from vlm_eff.core.handle import Undo
from vlm_eff.models.denoise import oracle
from vlm_eff.models.denoise.aligned import align
from vlm_eff.models.denoise.runtime import DenoiseRuntime
from vlm_eff.models.denoise.scheduling import Asking, build_scheduler, continuous, prediction_of, read_asking

# steps for the dry run
_TRIED = 8
# how far from 1 the strength of the first noise may be where the pipeline never asks for it
_UNSCALED = 0.05


@dataclass(frozen=True)
class SchedulerView:
    """The scheduler of a pipeline, as found.

    scheduler:  its class              config: as it is
    predicts:   what the model predicts: "flow", "epsilon", "v_prediction", "sample" or "unknown"
    continuous: whether the model is told log(sigma) / 4 for the time (SVD)
    pipeline:   its class              names: of the weights and adapters, small letters
    """

    scheduler: str
    config: dict[str, Any]
    predicts: str
    continuous: bool
    pipeline: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Solver:
    """A scheduler to put in place.

    scheduler:  class in diffusers, None for the present one    config: options that differ from the present ones
    table:      name of an aligned schedule for its steps       consistent: it is made for distilled models
    notes:      what reports of the runs say of it
    """

    scheduler: str | None
    config: dict[str, Any] = field(default_factory=dict)
    table: str | None = None
    consistent: bool = False
    notes: dict[str, float] = field(default_factory=dict)


class SamplerDriver:
    """Puts another scheduler on the pipeline, and the same old object back."""

    def __init__(self, runtime: DenoiseRuntime, site: SamplerSite, plugin: DenoisePlugin) -> None:
        self._runtime, self._pipe = runtime, runtime.denoising.pipe
        self._old = self._pipe.scheduler
        view = _view(runtime)
        answer = plugin.at(site, view)
        if not isinstance(answer, Solver):
            raise StateError(explain(f"{plugin.name} answered {answer!r}", "a Solver", "Correct the plugin"))
        self._solver, self._notes = answer, {"scheduler": 1.0, **answer.notes}
        self._new = self._made()
        if answer.scheduler is not None or answer.config:
            self._try(view)

    def install(self, undo: Undo) -> None:
        undo.push(lambda: self._switch(False))
        self._runtime.switches.append(self._switch)
        self._switch(True)

    def began(self) -> None:
        """A run begins: say which scheduler takes it."""
        if self._runtime.active and self._pipe.scheduler is self._new:
            self._runtime.ledger.now.notes.update(self._notes)

    def ended(self) -> None:
        """Nothing of a run is kept here."""

    def _switch(self, on: bool) -> None:
        given, taken = (self._new, self._old) if on else (self._old, self._new)
        # a scheduler that the user has chosen in the meantime stays
        if self._pipe.scheduler is taken:
            self._pipe.scheduler = given

    def _made(self) -> Any:
        made = build_scheduler(self._old, self._solver.scheduler, self._solver.config)
        if self._solver.table is not None:
            align(made, self._solver.table)
        return made

    def _try(self, view: SchedulerView) -> None:
        asking = read_asking(self._pipe)
        announced = self._made()
        asking.announce(announced, _TRIED, view.pipeline)
        _refuse_unscaled(announced, asking, view.pipeline)
        name = type(self._new).__name__
        old, new = (getattr(scheduler, "alphas_cumprod", None) for scheduler in (self._old, self._new))
        if view.predicts != "flow" and not _same(old, new):
            raise CapabilityError(
                explain(
                    f"{name} adds noise in other amounts than {view.scheduler}, with which the model was trained",
                    "schedulers that know its noise levels (betas, and their rescaling to zero at the end)",
                    "Choose another sampler",
                )
            )
        if view.predicts == "flow":
            _judge(name, oracle.straight_distance(self._made, asking), oracle.STRAIGHT_OFF, "a constant velocity")
        model = oracle.data_for(self._new, view.predicts, old, consistent=self._solver.consistent)
        limit = oracle.FEW_OFF if model.consistent else oracle.OFF
        try:
            off = oracle.distance(self._made, asking, model)
        except Exception as error:
            raise CapabilityError(
                explain(
                    f"{name} fails on a model that predicts {view.predicts}: {type(error).__name__} {error}",
                    "schedulers that sample data with a known answer",
                    "Choose another sampler, or other options",
                )
            ) from error
        _judge(name, off, limit, f"Gaussian data and a perfect model that predicts {view.predicts}")


def _refuse_unscaled(scheduler: Any, asking: Asking, pipeline: str) -> None:
    """Raise `CapabilityError` where the solver begins with stronger noise than the pipeline ever gives."""
    strength = float(getattr(scheduler, "init_noise_sigma", 1.0))
    if asking.methods and "init_noise_sigma" not in asking.methods and abs(strength - 1) > _UNSCALED:
        raise CapabilityError(
            explain(
                f"{type(scheduler).__name__} begins with noise of strength {strength:.3g}, {pipeline} with 1",
                "solvers that begin with noise of strength 1, such as ddim, unipc and dpmpp_2m",
                "Choose one of these",
            )
        )


def _judge(name: str, off: float, limit: float, data: str) -> None:
    if not off <= limit:
        raise CapabilityError(
            explain(
                f"{name}, given {data}, ends {off:.3g} away from the known answer",
                f"schedulers that end within {limit}",
                "Choose another sampler, or other options",
            )
        )


def _same(old: Any, new: Any) -> bool:
    # where the noise is all there is, solvers keep 2^-24 of the signal
    return old is not None and new is not None and old.shape == new.shape and torch.allclose(old, new, atol=1e-6)


def _view(runtime: DenoiseRuntime) -> SchedulerView:
    pipe, old = runtime.denoising.pipe, runtime.denoising.scheduler
    names = [type(old).__name__, str(pipe.config.get("_name_or_path", ""))]
    for module in runtime.denoising.denoisers.values():
        config = getattr(module, "config", {})
        names += [str(config.get("_name_or_path", ""))]
        names += ["lcm"] if config.get("time_cond_proj_dim") is not None else []
        names += list(getattr(module, "peft_config", {}))
    return SchedulerView(
        type(old).__name__,
        dict(old.config),
        prediction_of(old),
        continuous(old),
        type(pipe).__name__,
        tuple(name.lower() for name in names if name and name != "None"),
    )
