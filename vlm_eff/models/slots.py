"""Which logical positions a cache layer stores, in storage order."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlm_eff.core.errors import StateError, explain
from vlm_eff.models.token_map import TokenMap


def crop_refused(count: int, most: int) -> StateError:
    """The error of a crop that reaches back into what was dropped."""
    return StateError(
        explain(
            f"the cache is to be cropped by {count} positions, back into the visual tokens that were dropped",
            f"at most {most} positions",
            "Crop only what came after the last image, or start a new cache",
        )
    )


@dataclass(frozen=True)
class Slots:
    """Stored entries: a prefix with gaps and in any order, then an unbroken tail.

    index, valid: [B, n] logical positions of the prefix; False marks a filler (stored, never attended)
    start, stop:  the tail holds the logical positions start..stop-1 in every row
    ragged:       True when the prefix has any filler
    shift:        [B] what re-indexed positions subtract from logical ones, or None
    The tail is never changed by dropping, so it may be cropped; the prefix may not.
    """

    index: Tensor
    valid: Tensor
    start: int
    stop: int
    ragged: bool
    shift: Tensor | None = None

    @classmethod
    def plain(cls, rows: int, length: int, device: torch.device) -> Slots:
        """A layer that stores the positions 0..length-1."""
        empty = torch.zeros(rows, 0, dtype=torch.long, device=device)
        return cls(empty, empty.bool(), 0, length, ragged=False)

    @property
    def whole(self) -> bool:
        """True when nothing is missing: every position up to now is in the tail."""
        return self.start == 0 and self.index.shape[1] == 0 and self.shift is None

    @property
    def stored(self) -> int:
        """Physical length: entries stored in each row, fillers included."""
        return self.index.shape[1] + self.stop - self.start

    @property
    def logical(self) -> int:
        """Logical length: positions counted."""
        return self.stop

    def positions(self) -> tuple[Tensor, Tensor]:
        """All stored positions [B, N] and which are no fillers [B, N]."""
        tail = torch.arange(self.start, self.stop, device=self.index.device).expand(self.index.shape[0], -1)
        return torch.cat([self.index, tail], 1), torch.cat([self.valid, torch.ones_like(tail, dtype=torch.bool)], 1)

    def grow(self, count: int) -> Slots:
        """Append `count` positions at the end of the tail."""
        # at every step of every layer: `dataclasses.replace` takes fifty times as long
        return Slots(self.index, self.valid, self.start, self.stop + count, self.ragged, self.shift)

    def join(self, index: Tensor, valid: Tensor, count: int, *, ragged: bool) -> Slots:
        """Append revived positions [B, R], then `count` new ones at the end of the tail; what was tail is no longer."""
        known, ok = self.positions()
        index, valid = torch.cat([known, index], 1), torch.cat([ok, valid], 1)
        return Slots(index, valid, self.stop, self.stop + count, self.ragged or ragged, self.shift)

    def seal(self, start: int) -> Slots:
        """Let the tail begin at `start` at the earliest, so that no crop reaches behind it."""
        if start <= self.start:
            return self
        index, valid = self.positions()
        cut = self.stored - (self.stop - start)
        return replace(self, index=index[:, :cut], valid=valid[:, :cut], start=start)

    def append(self, survivors: TokenMap, last_dropped: int, shift: Tensor | None) -> Slots:
        """Append the survivors of a call whose last dropped slot (over all rows) is `last_dropped`."""
        index, valid = self.positions()
        past, tail = self.stop, survivors.length - last_dropped - 1
        cut = survivors.size - tail
        return Slots(
            torch.cat([index, past + survivors.index[:, :cut]], 1),
            torch.cat([valid, survivors.valid[:, :cut]], 1),
            past + last_dropped + 1,
            past + survivors.length,
            self.ragged or survivors.ragged,
            shift,
        )

    def keep_last(self, count: int) -> Slots:
        """Forget all but the last `count` entries, as a sliding layer does."""
        surplus = self.stored - count
        if surplus <= 0:
            return self
        prefix = self.index.shape[1]
        start = self.start + max(surplus - prefix, 0)
        return replace(self, index=self.index[:, surplus:], valid=self.valid[:, surplus:], start=start)

    def crop(self, count: int) -> Slots:
        """Forget the last `count` positions; they must lie in the tail."""
        if count > self.stop - self.start:
            raise crop_refused(count, self.stop - self.start)
        return replace(self, stop=self.stop - count)

    def select(self, rows: Tensor) -> Slots:
        """Take batch rows, as beam search does."""
        rows = rows.to(self.index.device)
        shift = None if self.shift is None else self.shift.index_select(0, rows)
        return replace(
            self, index=self.index.index_select(0, rows), valid=self.valid.index_select(0, rows), shift=shift
        )
