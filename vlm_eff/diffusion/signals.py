"""How much a unit of the denoiser changes at a step, seen without computing it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.denoise import DenoiseContext
from vlm_eff.core.errors import StateError, explain
from vlm_eff.diffusion.calibration import ChangeCurve
from vlm_eff.models.denoise.view import UnitView


@part
@dataclass(frozen=True)
class FirstBlockChange:
    """What the first blocks add to the stream, against the last step that was computed: relative L1 of each row [R].

    Of a `StackSite` with first > 0.
    """

    depth = 1
    sees_inputs = False

    def __call__(self, view: UnitView) -> Tensor | None:
        return since_computed(view, "first", look(view, "first"))


@part
@dataclass(frozen=True)
class ModulatedChange:
    """The modulated input of the first block, against the step before, computed or not: relative L1 of each row [R]."""

    depth = 1
    sees_inputs = False

    def __call__(self, view: UnitView) -> Tensor | None:
        now = look(view, "modulated")
        before = view.notes.get("modulated")
        view.notes["modulated"] = now
        return None if before is None else relative_change(now, before)


@part
@dataclass(frozen=True)
class CalibratedChange:
    """What a signal says, as the change of the unit's output that a calibration has found to go with it [R].

    More than was ever seen there counts as infinitely much, which computes.
    """

    signal: ModulatedChange
    curve: ChangeCurve

    @property
    def depth(self) -> int:
        return self.signal.depth

    @property
    def sees_inputs(self) -> bool:
        return self.signal.sees_inputs

    def bound(self, method: str, context: DenoiseContext) -> None:
        """Refuse another model or scheduler than the calibration's."""
        self.curve.made.check(context)

    def __call__(self, view: UnitView) -> Tensor | None:
        change = self.signal(view)
        return None if change is None else self.curve(change)


@part
@dataclass(frozen=True)
class LatentChange:
    """What the output is expected to change by, from how the latents do: relative L1 of each row [R].

    Of a `DenoiserSite`. The last two computed steps tell how strongly the output goes with the latents.
    """

    depth = 2
    sees_inputs = True

    def __call__(self, view: UnitView) -> Tensor | None:
        before, now = view.notes.get("latents"), view.inputs
        view.notes["latents"] = now.clone()
        if before is None or len(view.history) < 2:
            return None
        older, newer = view.history[-2:]
        assert older.inputs is not None and newer.inputs is not None
        slope = magnitude(newer.value[0] - older.value[0]) / magnitude(newer.inputs - older.inputs)
        return slope * magnitude(now - before) / magnitude(newer.value[0])


def look(view: UnitView, name: str) -> Tensor:
    """What the driver of the site shows under a name."""
    if view.probe is None:
        raise StateError(explain(f"{name!r} of a {view.unit.kind}", "a StackSite", "Give the step cache another site"))
    return view.probe(name)


def relative_change(now: Tensor, before: Tensor) -> Tensor:
    """mean |now - before| / mean |before| of each row [R], float32."""
    return magnitude(now - before) / magnitude(before)


def magnitude(value: Tensor) -> Tensor:
    """Mean absolute value of each row [R], float32."""
    return value.abs().mean(tuple(range(1, value.dim())), dtype=torch.float32)


def since_computed(view: UnitView, name: str, now: Tensor) -> Tensor | None:
    """Change of a look since the last step at which each row was computed [R]; None before there was any."""
    seen, base = view.notes.get(f"{name}.seen"), view.notes.get(f"{name}.base")
    fresh = view.renewed(name)
    if seen is not None and any(fresh):
        if base is None or all(fresh):
            base = seen
        else:
            rows = torch.tensor(fresh, device=now.device).view(-1, *[1] * (now.dim() - 1))
            base = seen.where(rows, base)
    view.notes[f"{name}.seen"], view.notes[f"{name}.base"] = now, base
    return None if base is None else relative_change(now, base)
