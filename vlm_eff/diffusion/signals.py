"""How much a unit of the denoiser changes at a step, seen without computing it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.errors import StateError, explain
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


def look(view: UnitView, name: str) -> Tensor:
    """What the driver of the site shows under a name."""
    if view.probe is None:
        raise StateError(explain(f"{name!r} of a {view.unit.kind}", "a StackSite", "Give the step cache another site"))
    return view.probe(name)


def relative_change(now: Tensor, before: Tensor) -> Tensor:
    """mean |now - before| / mean |before| of each row [R], float32."""
    axes = tuple(range(1, now.dim()))
    return (now - before).abs().mean(axes, dtype=torch.float32) / before.abs().mean(axes, dtype=torch.float32)


def since_computed(view: UnitView, name: str, now: Tensor) -> Tensor | None:
    """Change of a look since the last step at which each row was computed [R]; None before there was any."""
    seen, base = view.notes.get(f"{name}.seen"), view.notes.get(f"{name}.base")
    fresh = computed_rows(view, name)
    if seen is not None and any(fresh):
        if base is None or all(fresh):
            base = seen
        else:
            rows = torch.tensor(fresh, device=now.device).view(-1, *[1] * (now.dim() - 1))
            base = seen.where(rows, base)
    view.notes[f"{name}.seen"], view.notes[f"{name}.base"] = now, base
    return None if base is None else relative_change(now, base)


def computed_rows(view: UnitView, asker: str) -> list[bool]:
    """Which rows were computed at the step at which `asker` asked this the last time; it asks once a step."""
    last = view.notes.get(f"{asker}.step")
    view.notes[f"{asker}.step"] = view.step.index
    if not view.history:
        return [False] * view.rows
    return [step.index == last for step in view.history[-1].steps]
