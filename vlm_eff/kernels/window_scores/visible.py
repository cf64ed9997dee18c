"""Which keys a row may look at: up to its last key, from its first key on, and where a mask does not hide them.

Throughout: rows are R queries of each of B samples, keys are S columns.

    causal  True: row r sees keys up to `column[:, r]`, or up to S - R + r where no column is given; False: all keys
    column  [B, R] last key of each row; -1 for a row that does not count
    first   [B] or [B, R] first key that is seen (left padding, sliding windows), or None
    looks   [B, 1 | Hkv | H, 1 | R, S] bool what else hides keys, or None
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.errors import InputError, explain


@dataclass(frozen=True)
class Sight:
    """What rows may look at; see the module."""

    rows: int
    keys: int
    causal: bool
    column: Tensor | None
    first: Tensor | None
    looks: Tensor | None

    def pairs(self, heads: int, device: torch.device) -> Tensor | None:
        """Which rows may look at which keys, bool [B | 1, 1 | H, R | 1, S]; None where all may look at all."""
        n = torch.arange(self.keys, device=device)
        made: Tensor | None = None
        if (last := self._last(device)) is not None:
            made = n <= last[:, None, :, None]
        if self.first is not None:
            lowest = self.first if self.first.dim() == 2 else self.first[:, None]
            seen = n >= lowest[:, None, :, None]
            made = seen if made is None else made & seen
        if self.looks is not None:
            looks = self.looks
            if looks.shape[1] not in (1, heads):
                looks = looks.repeat_interleave(heads // looks.shape[1], 1)
            made = looks if made is None else made & looks
        return made

    def part(self, start: int, end: int) -> Sight:
        """The rows from `start` to `end`."""
        column, first, looks = self.column, self.first, self.looks
        if column is not None:
            column = column[:, start:end]
        elif self.causal:
            place = torch.arange(self.keys - self.rows + start, self.keys - self.rows + end)
            column = place[None]
        if first is not None and first.dim() == 2:
            first = first[:, start:end]
        if looks is not None and looks.shape[2] > 1:
            looks = looks[:, :, start:end]
        return Sight(end - start, self.keys, self.causal, column, first, looks)

    def _last(self, device: torch.device) -> Tensor | None:
        if not self.causal:
            return None
        if self.column is not None:
            return self.column.to(device)
        return torch.arange(self.keys - self.rows, self.keys, device=device)[None]


def visible_rows(sight: Sight, weight: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """How many rows may look at each key, each counted by its weight [B, R] -> [B, 1 | Hkv | H, S] float32.

    A row whose column is -1 does not count. Without `looks` nothing of size R x S is made.
    """
    counts = torch.ones(1, 1, device=device) if weight is None else weight.float()
    counts = counts.expand(batch, sight.rows)
    if sight.looks is not None:
        pairs = sight.pairs(sight.looks.shape[1], device)
        assert pairs is not None
        there = pairs.expand(batch, -1, sight.rows, -1)
        return torch.einsum("bhrs,br->bhs", there.float(), counts)
    last = sight._last(device)
    last = torch.full((1, 1), sight.keys - 1, device=device) if last is None else last.clamp(max=sight.keys - 1)
    begin = torch.zeros(1, 1, device=device, dtype=torch.long) if sight.first is None else sight.first.clamp(min=0)
    begin = begin if begin.dim() == 2 else begin[:, None]
    last, begin = (t.expand(batch, sight.rows).long() for t in (last, begin))
    # a row adds its weight from its first key on and takes it away behind its last
    counts = torch.where(last >= begin, counts, 0.0).double()
    steps = counts.new_zeros(batch, sight.keys + 1)
    steps = steps.scatter_add(1, begin.clamp(max=sight.keys), counts)
    steps = steps.scatter_add(1, (last + 1).clamp(min=0), -counts)
    return steps[:, : sight.keys].cumsum(1).float()[:, None]


def visible_keys(sight: Sight, batch: int, device: torch.device) -> Tensor:
    """How many keys each row may look at [B, R] int64; `looks` must be the same for all heads."""
    n = sight.keys
    last = sight._last(device)
    last = torch.full((1, 1), n - 1, device=device) if last is None else last.clamp(min=-1, max=n - 1)
    begin = torch.zeros(1, 1, device=device, dtype=torch.long) if sight.first is None else sight.first.clamp(0, n)
    begin = begin if begin.dim() == 2 else begin[:, None]
    last, begin = (t.expand(batch, sight.rows).long() for t in (last, begin))
    if sight.looks is None:
        return (last + 1 - begin).clamp(min=0)
    if sight.looks.shape[2] > 1:
        pairs = sight.pairs(1, device)
        assert pairs is not None
        return pairs[:, 0].sum(-1).expand(batch, -1)
    before = torch.nn.functional.pad(sight.looks[:, 0, 0].long().cumsum(1), (1, 0)).expand(batch, -1)
    return (before.gather(1, last + 1) - before.gather(1, begin)).clamp(min=0)


def check(query: Tensor, key: Tensor, sight: Sight, weight: Tensor | None, lse: Tensor | None) -> None:
    """Raise `InputError` where shapes do not fit together."""
    if query.dim() != 4 or key.dim() != 4:
        raise _wrong("query and key", (query, key), "[B, H, R, Dh] and [B, Hkv, S, Dh]")
    batch, heads, rows, width = query.shape
    kv_heads, keys = key.shape[1:3]
    if key.shape[0] != batch or key.shape[3] != width or kv_heads == 0 or heads % kv_heads or not rows or not keys:
        raise _wrong("query and key", (query, key), "[B, H, R, Dh] and [B, Hkv, S, Dh] with H a multiple of Hkv")
    if sight.causal and sight.column is None and rows > keys:
        raise InputError(
            explain(f"{rows} rows over {keys} keys", "at most as many rows", "Say with column= where the rows are")
        )
    if sight.column is not None and not sight.causal:
        raise InputError(explain("causal=False with columns", "one of them", "Leave column out"))
    for name, tensor, shapes in (
        ("column", sight.column, [(batch, rows)]),
        ("first", sight.first, [(batch,), (batch, rows)]),
        ("weight", weight, [(batch, rows)]),
        ("lse", lse, [(batch, heads, rows)]),
        ("looks", sight.looks, [(batch, h, r, keys) for h in (1, kv_heads, heads) for r in (1, rows)]),
    ):
        if tensor is not None and tuple(tensor.shape) not in shapes:
            raise _wrong(name, (tensor,), " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes)))
    if sight.looks is not None and sight.looks.dtype != torch.bool:
        raise InputError(explain(f"looks of {sight.looks.dtype}", "torch.bool", "Compare the mask with something"))


def _wrong(name: str, tensors: tuple[Tensor, ...], accepted: str) -> InputError:
    got = " and ".join(str(list(tensor.shape)) for tensor in tensors)
    return InputError(explain(f"{name} of shape {got}", accepted, "Bring the tensors into these shapes"))
