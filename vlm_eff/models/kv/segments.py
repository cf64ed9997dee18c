"""Cache entries in another form than one rectangular tensor: packed once, read back when a layer attends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vlm_eff.kernels.packed_decode import PackedPair
    from vlm_eff.models.kv.places import Rotary


@dataclass(frozen=True)
class Segment(ABC):
    """Some entries of one layer.

    position: [B, Hkv, P] int32 logical positions; -1 for a filler
    weight:   [B, Hkv, P] float32 tokens that an entry stands for, or None for one each
    Buffers have the batch first, or can be told which rows to take; nothing is ever packed a second time.
    """

    position: Tensor
    weight: Tensor | None

    # True where reading gives back the very numbers that were put in, so that a later decision may take them out again
    exact = False

    @property
    def count(self) -> int:
        """P: entries of a row and head, fillers included."""
        return self.position.shape[2]

    @abstractmethod
    def read(self, dtype: torch.dtype, rotary: Rotary | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values [B, Hkv, P, Dh]; `rotary` makes the tables of positions for keys stored before rotation."""

    def pair(self, bias: Tensor | None) -> PackedPair | None:
        """What `packed_decode` reads of it, with a bias [B, 1 | Hkv | H, 1 | Q, P]; None where it must be read back."""
        return None

    def extra_flops(self, rows: int) -> int:
        """FLOPs of a decode step beyond two products with every entry; `rows` queries a key head."""
        return 0

    @abstractmethod
    def contents(self) -> list[Tensor]:
        """The tensors that hold keys and values."""

    @abstractmethod
    def mapped(self, change: Any, rows: Tensor | None) -> Segment:
        """The same with `change` applied to every tensor; `rows` [B'] when it takes batch rows, None when it moves."""

    def joins(self, later: Segment) -> bool:
        """Whether `later` can be laid behind this one without packing anything again; known to the host."""
        return False

    def join(self, later: Sequence[Segment]) -> Segment:
        """The entries of this segment and of `later` ones, each of which joins the next, as one."""
        raise NotImplementedError

    @property
    def buffers(self) -> list[Tensor]:
        """Every tensor that is held."""
        return [self.position, *([] if self.weight is None else [self.weight]), *self.contents()]

    def select(self, rows: Tensor) -> Segment:
        """Take batch rows, as beam search does."""
        return self.mapped(lambda tensor: tensor.index_select(0, rows.to(tensor.device)), rows)

    def to(self, device: torch.device | str) -> Segment:
        """The same on another device."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=True), None)

    def _head(self, change: Any) -> dict[str, Any]:
        return {
            "position": change(self.position),
            "weight": None if self.weight is None else change(self.weight),
        }


@dataclass(frozen=True)
class RaggedSegment(Segment):
    """Entries as they were, where heads keep different numbers of them: one flat tensor, no fillers stored.

    key, value: [N, Dh] the entries of row 0 head 0, then of row 0 head 1, and so on; start: [B, Hkv] where each begins
    """

    key: Tensor
    value: Tensor
    start: Tensor

    exact = True

    @classmethod
    def of(cls, key: Tensor, value: Tensor, position: Tensor, weight: Tensor | None) -> RaggedSegment:
        """From rectangular tensors [B, Hkv, P, Dh] whose fillers (position -1) come last in each head."""
        there = position >= 0
        count = there.sum(-1)
        start = (count.flatten().cumsum(0) - count.flatten()).view_as(count)
        return cls(position, weight, key[there], value[there], start)

    def read(self, dtype: torch.dtype, rotary: Rotary | None = None) -> tuple[Tensor, Tensor]:
        at = self.start[..., None] + torch.arange(self.count, device=self.start.device)
        at = at.clamp(max=max(len(self.key) - 1, 0)).where(self.position >= 0, torch.zeros_like(at))
        if not len(self.key):
            empty = self.key.new_zeros(*self.position.shape, self.key.shape[-1])
            return empty.to(dtype), empty.to(dtype)
        return self.key[at].to(dtype), self.value[at].to(dtype)

    def contents(self) -> list[Tensor]:
        return [self.key, self.value, self.start]

    def mapped(self, change: Any, rows: Tensor | None) -> Segment:
        if rows is None:
            return replace(
                self, **self._head(change), key=change(self.key), value=change(self.value), start=change(self.start)
            )
        key, value = self.read(self.key.dtype)
        head = self._head(change)
        return RaggedSegment.of(change(key), change(value), head["position"], head["weight"])
