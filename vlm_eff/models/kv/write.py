"""Carrying out what a plugin decided for one layer: gather what stays, pack what is packed, let go of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vlm_eff.core.cache import EXACT, Stored
from vlm_eff.importance.select import from_mask
from vlm_eff.kernels.compact import compact
from vlm_eff.models.kv.joining import joined
from vlm_eff.models.kv.layer import CompressedLayer
from vlm_eff.models.kv.segments import RaggedSegment, Segment
from vlm_eff.models.kv.view import Entries
from vlm_eff.models.slots import Slots


class Form(Protocol):
    """A form in which entries are packed."""

    def pack(
        self,
        key: Tensor,
        value: Tensor,
        position: Tensor,
        weight: Tensor | None,
        entries: Entries,
    ) -> Segment:
        """The segment of keys and values [B, Hkv, P, Dh]; fillers, at position -1, come last in each head.

        entries: the open entries that these were taken from, with everything that was observed of them
        """
        ...


@dataclass(frozen=True)
class _Picked:
    """Entries of one form: contents, positions, weights, and the open columns they came from [B, Hkv, P].

    count: [B, Hkv] of them, of the heads of other ranks too: P is the most that any head has
    """

    key: Tensor
    value: Tensor
    position: Tensor
    weight: Tensor | None
    source: Tensor
    count: Tensor

    @property
    def uneven(self) -> bool:
        """True when heads of one row keep different numbers: then fillers would be stored for nothing."""
        return bool((self.count != self.count[:, :1]).any())


def unchanged(decided: Stored, entries: Entries) -> bool:
    """True when a decision keeps every entry as it is, so that nothing has to be written."""
    if decided.key is not None or decided.value is not None or decided.weight is not None:
        return False
    return bool(((decided.form == EXACT) | ~entries.present).all())


def carry_out(decided: Stored, entries: Entries, cache: CompressedLayer, limit: int) -> None:
    """Write a layer. What is new is made before anything old is let go, so that an error changes nothing."""
    exact = _pick(decided, entries, EXACT)
    made: list[Segment] = []
    sources: list[Tensor] = []
    for number, form in enumerate(decided.forms, start=1):
        picked = _pick(decided, entries, number)
        if picked.position.shape[2]:
            made.append(form.pack(picked.key, picked.value, picked.position, picked.weight, entries))
            sources.append(picked.source)
    if exact.uneven:
        made.append(RaggedSegment.of(exact.key, exact.value, exact.position, exact.weight))
        sources.append(exact.source)
        exact = _pick(decided, entries, len(decided.forms) + 1)
    closed = [segment for segment in cache.segments if not segment.exact]
    segments = joined([*closed, *made])
    inside = cache.inside(limit)
    tails = [
        torch.cat([new, old[:, :, inside:]], 2) for new, old in ((exact.key, cache.keys), (exact.value, cache.values))
    ]
    order = [number for _, numbers in segments for number in numbers]
    _move(cache, entries.stored, sources, exact.source, order, inside)
    slots = cache.slots
    cache.keys, cache.values = tails
    cache.held, cache.weight = exact.position, exact.weight
    cache.segments = tuple(segment for segment, _ in segments)
    empty = slots.index[:, :0]
    cache.slots = Slots(empty, empty.bool(), max(limit, slots.start), slots.stop, ragged=False, shift=slots.shift)
    cache.ragged = _ragged(cache)


def _ragged(cache: CompressedLayer) -> bool:
    """True when any stored entry is a filler (asks the device, once a compression)."""
    return bool((cache.positions() < 0).any())


def _pick(decided: Stored, entries: Entries, number: int) -> _Picked:
    """The present entries of form `number`, in the order of columns, fillers last."""
    wanted = (decided.form == number) & entries.present
    batch, heads, count = wanted.shape
    found = from_mask(wanted.reshape(batch * heads, count))
    index = entries.own(found.index.view(batch, heads, -1))
    valid = entries.own(found.valid.view(batch, heads, -1))
    mine = entries.stored
    key = mine.key if decided.key is None else entries.own(decided.key)
    value = mine.value if decided.value is None else entries.own(decided.value)
    weight = mine.weight if decided.weight is None else entries.own(decided.weight)
    known = [key, value, mine.position] if weight is None else [key, value, mine.position, weight]
    key, value, position, *weights = compact(known, index)
    weight = weights[0].masked_fill(~valid, 1.0) if weights else None
    return _Picked(key, value, position.masked_fill(~valid, -1), weight, index, wanted.sum(-1))


def _move(
    cache: CompressedLayer, entries: Entries, sources: list[Tensor], exact: Tensor, order: list[int], inside: int
) -> None:
    """Bring what was observed of each entry to the new order of columns.

    sources, exact: the open columns that each new segment and the rest were taken from; order: of old and new segments
    """
    book = cache.book
    if not book.sums and not book.gradients:
        return
    blocks, first = [], 0
    shape = entries.position.shape[:2]
    for segment in cache.segments:
        if not segment.exact:
            blocks.append(torch.arange(first, first + segment.count, device=exact.device).expand(*shape, -1))
        first += segment.count
    blocks += [entries.columns.gather(2, source) for source in sources]
    total = first + cache.keys.shape[2]
    tail = torch.arange(first + inside, total, device=exact.device).expand(*shape, -1)
    columns = torch.cat([*(blocks[number] for number in order), entries.columns.gather(2, exact), tail], 2)
    book.sums = {kind: sums.take(columns) for kind, sums in book.sums.items()}
    book.gradients = dict(zip(book.gradients, compact(list(book.gradients.values()), columns), strict=True))
