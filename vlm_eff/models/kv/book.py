"""What a cache layer has observed since it was last compressed: query rows, and what entries received."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from vlm_eff.core.cache import PADDING, TEXT, CacheRows, CacheSums
from vlm_eff.importance.select import from_mask
from vlm_eff.kernels.compact import compact
from vlm_eff.models.token_map import TokenMap

# multiplier of Knuth's multiplicative hash: spreads consecutive places over 32 bits
_SPREAD = 2654435761


@dataclass(frozen=True)
class Asked:
    """Query rows that were kept, in sequence order among the valid ones.

    query:    [B, H, R, Dh] as the layer attended with them
    position: [B, R] logical position           ordinal: [B, R] how many real tokens come before
    modality: [B, R] int8, see `core/cache.py`  valid: [B, R] False where the column does not exist in a row
    looks:    [B, R, S] bool logical columns that the row could look at when it passed
    """

    query: Tensor
    position: Tensor
    ordinal: Tensor
    modality: Tensor
    valid: Tensor
    looks: Tensor

    def select(self, rows: Tensor) -> Asked:
        """Take batch rows."""
        return _each(self, lambda tensor: tensor.index_select(0, rows.to(tensor.device)))

    def only(self, wanted: Tensor) -> Asked:
        """The rows marked in `wanted` [B, R], closed up."""
        found = from_mask(wanted & self.valid)
        made = _each(self, lambda tensor: _take(tensor, found.index))
        return replace(made, valid=found.valid)

    def replaced(self, newer: Asked) -> Asked:
        """As many newer rows, which could look at more columns, and these where there is none."""
        wide = newer.looks.shape[2]
        old = replace(self, looks=torch.nn.functional.pad(self.looks, (0, wide - self.looks.shape[2])))

        def pick(name: str) -> Tensor:
            one, other = getattr(newer, name), getattr(old, name)
            at = newer.valid[:, None, :, None] if name == "query" else newer.valid
            return torch.where(at[:, :, None] if name == "looks" else at, one, other)

        made = {f.name: pick(f.name) for f in fields(self)}
        return Asked(**made | {"valid": newer.valid | old.valid})

    def join(self, later: Asked) -> Asked:
        """These rows, then later ones, which could look at more columns."""
        wide = later.looks.shape[2]
        old = torch.nn.functional.pad(self.looks, (0, wide - self.looks.shape[2]))
        parts = {
            f.name: torch.cat([getattr(self, f.name), getattr(later, f.name)], 2 if f.name == "query" else 1)
            for f in fields(self)
            if f.name != "looks"
        }
        return Asked(**parts, looks=torch.cat([old, later.looks], 1))


def _each(value: Any, change: Any) -> Any:
    return type(value)(*(change(getattr(value, f.name)) for f in fields(value)))


def _take(tensor: Tensor, index: Tensor) -> Tensor:
    """Take rows `index` [B, K] of [B, R, ...], or of [B, H, R, Dh]."""
    if tensor.dim() == 4:
        return tensor.gather(2, index[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3]))
    if tensor.dim() == 3:
        return tensor.gather(1, index[:, :, None].expand(-1, -1, tensor.shape[2]))
    return tensor.gather(1, index)


def wanted_rows(rule: CacheRows, position: Tensor, ordinal: Tensor, modality: Tensor, valid: Tensor) -> Tensor:
    """Which of the rows so far a rule keeps [B, R]; all arguments [B, R], in sequence order."""
    behind = valid
    text = valid & (modality == TEXT)
    if rule.which == "text":
        behind = torch.where(text.any(1, keepdim=True), text, valid)
    if rule.which == "after":
        last = position.masked_fill(~(valid & (modality > TEXT)), -1).amax(1, keepdim=True)
        behind = valid & (position > last)
    kept = _last(behind, rule.count)
    if rule.which == "after":
        # an image may come last, or more of the prompt in a later call
        kept = kept | _last(valid, rule.fallback)
    if rule.random:
        rest = valid & ~kept
        mixed = ((ordinal.long() + 1 + 7919 * rule.seed) * _SPREAD) % (1 << 32)
        order = torch.argsort(mixed.masked_fill(~rest, 1 << 33), dim=1, stable=True).argsort(1)
        kept = kept | (rest & (order < rule.random))
    return kept


def final_rows(rule: CacheRows, asked: Asked) -> Asked:
    """The rows of a rule when the prompt is over: "after" falls back only where nothing is behind the last image."""
    if rule.which != "after":
        return asked
    last = asked.position.masked_fill(~(asked.valid & (asked.modality > TEXT)), -1).amax(1, keepdim=True)
    behind = asked.valid & (asked.position > last)
    behind = _last(behind, rule.count)
    return asked.only(torch.where(behind.any(1, keepdim=True), behind, _last(asked.valid, rule.fallback)))


def _last(mask: Tensor, count: int | None) -> Tensor:
    """The last `count` True columns of each row."""
    if count is None:
        return mask
    later = mask.int().flip(1).cumsum(1).flip(1)
    return mask & (later <= count)


@dataclass(frozen=True)
class Sums:
    """What the entries of a layer received, by column of the cache.

    got:   [B, Hkv, S, C] added up over queries and over the query heads of a group, float32
    looks: [B, Hkv, S, C] query rows that could look at each entry
    C is 1, or the number of modalities
    """

    got: Tensor
    looks: Tensor

    def add(self, got: Tensor, looks: Tensor) -> Sums:
        """Add what a call brought; it may have more columns than before."""
        grown = got.shape[2] - self.got.shape[2]
        pad = (0, 0, 0, grown)
        return Sums(torch.nn.functional.pad(self.got, pad) + got, torch.nn.functional.pad(self.looks, pad) + looks)

    def take(self, index: Tensor) -> Sums:
        """The columns `index` [B, Hkv, K]."""
        return Sums(*compact([self.got, self.looks], index))


@dataclass(frozen=True)
class Columns:
    """What every column of the sequence is; kept by the first compressed layer for all of them.

    modality: [B, S] int8, `PADDING` for padding
    places:   [A, B, S] int32 rotary positions on each axis, or None when nobody asks for them
    """

    modality: Tensor
    places: Tensor | None = None

    @property
    def real(self) -> Tensor:
        """True where a column is no padding [B, S]."""
        return self.modality != PADDING

    def join(self, later: Columns) -> Columns:
        """Append the columns of a call."""
        both = self.places is not None and later.places is not None
        places = torch.cat([self.places, later.places], 2) if both else None  # type: ignore[list-item]
        return Columns(torch.cat([self.modality, later.modality], 1), places)

    def cut(self, length: int) -> Columns:
        """The first `length` columns."""
        return Columns(self.modality[:, :length], None if self.places is None else self.places[:, :, :length])

    def select(self, rows: Tensor) -> Columns:
        """Take batch rows."""
        rows = rows.to(self.modality.device)
        return Columns(
            self.modality.index_select(0, rows), None if self.places is None else self.places.index_select(1, rows)
        )


@dataclass
class Book:
    """The observations of one layer.

    prompt:   end of the newest prompt or turn that is not compressed yet, or None
    attended: [B, S] columns that took part in this layer's attention in their prefill, or None for all
    """

    asked: dict[CacheRows, Asked] = field(default_factory=dict)
    sums: dict[CacheSums, Sums] = field(default_factory=dict)
    gradients: dict[Any, Tensor] = field(default_factory=dict)
    columns: Columns | None = None
    prompt: int | None = None
    attended: Tensor | None = None

    def buffers(self) -> list[Tensor]:
        """Every tensor of query rows, sums and gradients that is kept."""
        rows = [getattr(asked, f.name) for asked in self.asked.values() for f in fields(asked)]
        sums = [tensor for made in self.sums.values() for tensor in (made.got, made.looks)]
        return [*rows, *sums, *self.gradients.values()]

    def select(self, rows: Tensor) -> Book:
        """Take batch rows, as beam search does."""

        def pick(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, rows.to(tensor.device))

        return Book(
            {rule: asked.select(rows) for rule, asked in self.asked.items()},
            {kind: Sums(pick(sums.got), pick(sums.looks)) for kind, sums in self.sums.items()},
            {kind: pick(tensor) for kind, tensor in self.gradients.items()},
            None if self.columns is None else self.columns.select(rows),
            self.prompt,
            None if self.attended is None else pick(self.attended),
        )

    def join_attended(self, past: int, tokens: TokenMap) -> None:
        """Note which tokens of a call behind `past` columns took part in the attention; all older ones that are not
        known did.
        """
        new = torch.zeros(len(tokens.index), tokens.length + 1, dtype=torch.bool, device=tokens.index.device)
        new.scatter_(1, torch.where(tokens.valid, tokens.index, tokens.length), True)
        old = new[:, :0] if self.attended is None else self.attended
        missing = new.new_ones(len(new), past - old.shape[1])
        self.attended = torch.cat([old, missing, new[:, : tokens.length]], 1)

    def crop(self, length: int, count: int) -> None:
        """Forget the last `count` columns; `length` are left."""
        self.prompt = None if self.prompt is None else min(self.prompt, length)
        if self.columns is not None:
            self.columns = self.columns.cut(length)
        if self.attended is not None:
            self.attended = self.attended[:, :length]
        self.asked = {
            rule: replace(asked, valid=asked.valid & (asked.position < length), looks=asked.looks[:, :, :length])
            for rule, asked in self.asked.items()
        }
        for kind, sums in self.sums.items():
            left = sums.got.shape[2] - count
            self.sums[kind] = Sums(sums.got[:, :, :left], sums.looks[:, :, :left])

    def settle(self) -> None:
        """Forget what only the newest prompt needed."""
        self.prompt = None
        self.asked = {rule: asked for rule, asked in self.asked.items() if rule.steps}
        self.sums = {kind: sums for kind, sums in self.sums.items() if kind.steps}
        self.gradients = {}
