"""What keys receive from rows of a layer, by the fused operations wherever they can be told what rows may look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vlm_eff.kernels.column_scores import column_scores
from vlm_eff.kernels.window_scores import Sight, visible_keys, visible_rows, window_scores
from vlm_eff.kernels.window_scores.fast import rows_at_once
from vlm_eff.models.observe import Source, row_logits

# pairs of a row and a key that a mask is gathered for at a time: 64 MiB
_PAIRS = 1 << 26
# more rows than this are no window: the kernel for all rows of a prompt is laid out for them
_MANY = 128


@dataclass(frozen=True)
class Looking:
    """What some rows of a source may look at, as the operations of `kernels` want to hear it.

    weight: [B, R] 1 for rows that count and 0 for others, or None where `sight` hides everything from the others
    """

    sight: Sight
    weight: Tensor | None

    def rows(self, batch: int, device: torch.device) -> Tensor:
        """How many of the rows may look at each key [B, S] float32; the same for all heads, or that of the first."""
        return visible_rows(self.sight, self.weight, batch, device)[:, 0]

    def keys(self, batch: int, device: torch.device) -> Tensor:
        """At how many keys each row may look [B, R]."""
        return visible_keys(self.sight, batch, device)


def looking(source: Source, slots: Tensor | None, valid: Tensor) -> Looking | None:
    """What the `valid` [B, R] rows at physical slots [B, R] may look at; slots None: all rows of the call, in order.

    None where only logits themselves will do: a table of modalities changes them, or the mask is one that is added,
    which may hold more than what it hides (and belongs to eager attention).
    """
    mask, (batch, rows), keys = source.mask, valid.shape, source.key.shape[2]
    if source.factor is not None:
        return None
    if isinstance(mask, Tensor) and mask.dim() == 4:
        if mask.dtype != torch.bool:
            return None
        # the mask alone decides: a bidirectional image block looks ahead
        mask = mask.expand(batch, *mask.shape[1:])
        if slots is None:
            return Looking(Sight(rows, keys, False, None, None, mask), valid.float())
        seen = mask.gather(2, slots[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
        return Looking(Sight(rows, keys, False, None, None, seen & valid[:, None, :, None]), None)
    looks = mask[:, None, None, :keys] != 0 if isinstance(mask, Tensor) else None
    place = source.past + (torch.arange(rows, device=valid.device).expand(batch, -1) if slots is None else slots)
    first = None if source.window is None else place - source.window + 1
    if not source.causal or slots is None:
        return Looking(Sight(rows, keys, source.causal, None, first, looks), valid.float())
    return Looking(Sight(rows, keys, True, place.masked_fill(~valid, -1), first, looks), None)


def reduce_rows(source: Source, slots: Tensor, valid: Tensor, reduce: Literal["sum", "max"]) -> tuple[Tensor, Tensor]:
    """Softmaxed attention of the `valid` [B, R] rows at `slots` [B, R], reduced over rows as they come.

    Returns the sum or maximum over rows [B, H, S] float32, and how many of the rows may look at each key [B, S].
    Never an L x L matrix, so that all rows can be asked for; on a GPU no logit leaves the kernel.
    """
    mask, step = source.mask, max(slots.shape[1], 1)
    if isinstance(mask, Tensor) and mask.dim() == 4:
        step = max(1, _PAIRS // max(slots.shape[0] * mask.shape[1] * source.key.shape[2], 1))
    total = looks = None
    for start in range(0, slots.shape[1], step):
        asked, counted = slots[:, start : start + step], valid[:, start : start + step]
        seen = looking(source, asked, counted)
        if seen is None:
            return _reduce_logits(source, slots, valid, reduce)
        got = _received(source, source.query(asked), seen.sight, seen.weight, reduce=reduce, grouped=False)
        rows = seen.rows(slots.shape[0], slots.device).long()
        total = got if total is None else total + got if reduce == "sum" else torch.maximum(total, got)
        looks = rows if looks is None else looks + rows
    if total is None or looks is None:
        # nobody was asked
        return _reduce_logits(source, slots, valid, reduce)
    return total, looks


def sum_all(source: Source, seen: Looking, weight: Tensor) -> Tensor:
    """What each key gets from all rows of the call, each counted by its weight [B, Q]: [B, Hkv, S] float32."""
    place = torch.arange(weight.shape[1], device=weight.device).expand(weight.shape[0], -1)
    query = source.query(place) if source.queries is None else source.queries
    return _received(source, query, seen.sight, weight, reduce="sum", grouped=True)


def _received(
    source: Source, query: Tensor, sight: Sight, weight: Tensor | None, *, reduce: Literal["sum", "max"], grouped: bool
) -> Tensor:
    arguments: dict[str, Any] = {"scaling": source.scaling, "softcap": source.softcap, "causal": sight.causal}
    arguments |= {"column": sight.column, "first": sight.first, "looks": sight.looks}
    arguments |= {"weight": weight, "grouped": grouped}
    if reduce == "sum" and sight.rows > _MANY:
        return column_scores(query, source.key, **arguments).float()
    return window_scores(query, source.key, **arguments, reduce=reduce).float()


def _reduce_logits(
    source: Source, slots: Tensor, valid: Tensor, reduce: Literal["sum", "max"]
) -> tuple[Tensor, Tensor]:
    """The same from logits, some rows at a time."""
    batch, heads = slots.shape[0], source.query(slots[:, :1]).shape[1]
    keys = source.key.shape[2]
    total = torch.zeros(batch, heads, keys, device=slots.device)
    looks = torch.zeros(batch, keys, dtype=torch.long, device=slots.device)
    step = rows_at_once(batch, heads, keys)
    for start in range(0, slots.shape[1], step):
        logits = row_logits(source, slots[:, start : start + step])
        counted = valid[:, start : start + step]
        # a padding row sees nothing and has no softmax; it is never counted
        weights = logits.softmax(-1).masked_fill(~counted[:, None, :, None], 0.0)
        total = total + weights.sum(2) if reduce == "sum" else torch.maximum(total, weights.amax(2))
        looks += (torch.isfinite(logits[:, 0]) & counted[:, :, None]).sum(1)
    return total, looks
