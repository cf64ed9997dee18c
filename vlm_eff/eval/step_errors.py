"""How far off each step of a run would be if it were predicted from earlier ones, from one run that computes all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vlm_eff.core.denoise import DenoisePlugin, DenoiseSite
from vlm_eff.core.resources import Resource
from vlm_eff.diffusion.schedules import Band, movement
from vlm_eff.diffusion.step_cache import StepCache
from vlm_eff.models.denoise.state import UnitState
from vlm_eff.models.denoise.view import Call, UnitView


@dataclass(frozen=True)
class Recorder(DenoisePlugin):
    """Computes everything and keeps what came out of every unit at every step."""

    cache: StepCache
    states: dict[Any, UnitState] = field(default_factory=dict)
    moves: dict[int, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "recorder"

    @property
    def sites(self) -> tuple[DenoiseSite, ...]:
        return self.cache.sites

    @property
    def writes(self) -> frozenset[Resource]:
        return self.cache.writes

    @property
    def depth(self) -> int:
        return 1_000_000

    @property
    def sees_inputs(self) -> bool:
        return self.cache.predictor.sees_inputs

    def at(self, site: Any, view: UnitView) -> None:
        # the state outlives the run here, and with it its last step
        self.states[view.call.denoiser, view.branch, view.unit, tuple(view.inputs.shape)] = view.state
        moved = movement(view)
        if moved is not None:
            self.moves.setdefault(view.step.index, []).append(moved)

    def table(self, cache: StepCache) -> Callable[[int | None, int, int], float]:
        """Relative L1 error of step j when it is predicted from what was computed at `before` and `at`."""
        units = [(key, state) for key, state in self.states.items() if state.history]
        pasts = [{past.steps[0].index: past for past in state.history} for _, state in units]
        forgets = cache.predictor.depth < 2

        @functools.cache
        def error(before: int | None, at: int, j: int) -> float:
            off = size = 0.0
            for (key, _), past in zip(units, pasts, strict=True):
                known = [past[i] for i in (before, at) if i is not None and i in past]
                if j not in past or not known:
                    continue
                real = past[j]
                inputs = real.value[0] if real.inputs is None else real.inputs
                call = Call(key[0], real.steps[0], key[1], inputs, {})
                got = cache.predictor(UnitView(key[2], call, inputs, UnitState(known)))
                for g, want in zip(got, real.value, strict=True):
                    off += float((g.float() - want.float()).abs().sum())
                    size += float(want.float().abs().sum())
            return off / max(size, 1e-12)

        return lambda before, at, j: error(None if forgets else before, at, j)

    def band(self, count: int) -> Band:
        """Least and most that the latents moved at each step."""
        seen = [self.moves.get(index, self.moves.get(1, [0.0])) for index in range(count)]
        return tuple((min(values), max(values)) for values in seen)
