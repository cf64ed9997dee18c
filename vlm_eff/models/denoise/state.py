"""What a run has computed so far of each unit: kept by branch, unit and shape, so that nothing of another fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlm_eff.core.denoise import Step
from vlm_eff.models.denoise.rows import Streams


@dataclass(frozen=True)
class Unit:
    """Something that can be skipped.

    name: of the module in the denoiser, "" for the denoiser itself      kind: "denoiser", "stack", "deep", "self",
    "cross", "temporal" or "mlp"       index: number of its block, 0-based; blocks: how many there are
    """

    name: str
    kind: str
    index: int = 0
    blocks: int = 1


@dataclass
class Past:
    """A computed output of a unit.

    value:  its streams, each [R, ...]       steps:  the step at which each row was computed, one a row
    inputs: what it was computed from [R, ...], where the plugin asked for it
    """

    value: tuple[Tensor, ...]
    steps: list[Step]
    inputs: Tensor | None = None

    def abscissa(self, of: str) -> list[float]:
        """Place of each row on an axis: "index", "sigma" or "log_snr"."""
        return [float(getattr(step, of)) for step in self.steps]


@dataclass
class UnitState:
    """History of one unit in one branch, newest last, and notes of the plugin.

    form: how the unit's output is made of tensors, once it was computed; streams: how many there are
    """

    history: list[Past] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    form: Streams | None = None
    streams: int = 0

    def keep(
        self, value: tuple[Tensor, ...], inputs: Tensor | None, step: Step, rows: Tensor | None, depth: int
    ) -> None:
        """Remember what was computed; rows: [R] bool, the rows that were, None for all."""
        made = Past(value, [step] * value[0].shape[0], inputs)
        if rows is None or not self.history:
            self.history = [*self.history, made][-depth:]
            return
        # rows that were not computed keep what they had, one place closer to the end
        chosen = rows.tolist()
        shifted = []
        for place, past in enumerate(self.history):
            newer = made if place + 1 == len(self.history) else self.history[place + 1]
            shifted.append(_mixed(past, newer, rows, chosen))
        self.history = shifted

    def tensors(self) -> Iterator[Tensor]:
        """All that is kept."""
        for past in self.history:
            yield from past.value
            if past.inputs is not None:
                yield past.inputs
        yield from (value for value in self.notes.values() if isinstance(value, Tensor))


def _mixed(old: Past, new: Past, rows: Tensor, chosen: list[bool]) -> Past:
    def mix(one: Tensor, other: Tensor) -> Tensor:
        shape = (-1,) + (1,) * (one.dim() - 1)
        return torch.where(rows.to(one.device).view(shape), other, one)

    value = tuple(mix(one, other) for one, other in zip(old.value, new.value, strict=True))
    steps = [b if yes else a for a, b, yes in zip(old.steps, new.steps, chosen, strict=True)]
    inputs = None if old.inputs is None or new.inputs is None else mix(old.inputs, new.inputs)
    return Past(value, steps, inputs)


Key = tuple[Any, ...]


class Store:
    """States of all units of a run."""

    def __init__(self) -> None:
        self._states: dict[Key, UnitState] = {}
        self._shapes: dict[Key, Key] = {}
        self.mismatches = 0

    def of(self, owner: Key, like: Tensor) -> UnitState:
        """State of a unit for inputs like this one; another shape, type or device has another state."""
        shape = (tuple(like.shape), like.dtype, like.device)
        known = self._shapes.setdefault(owner, shape)
        if known != shape and (owner, shape) not in self._states:
            self.mismatches += 1
        return self._states.setdefault((owner, shape), UnitState())

    def clear(self) -> None:
        """Forget everything."""
        self._states, self._shapes, self.mismatches = {}, {}, 0

    def bytes(self) -> int:
        """Bytes of all kept tensors, storages counted once."""
        found = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for s in self._states.values()
            for t in s.tensors()
        }
        return sum(found.values())
