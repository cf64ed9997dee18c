"""What is noted while a layer attends: query rows, and what entries receive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_eff.core.cache import CacheRows, CacheSums
from vlm_eff.importance.select import from_mask
from vlm_eff.kernels.window_scores.fast import rows_at_once
from vlm_eff.models.call import Call
from vlm_eff.models.kv.book import Asked, Columns, Sums, wanted_rows
from vlm_eff.models.kv.layer import CompressedLayer
from vlm_eff.models.observe import Source, gather_rows, row_logits
from vlm_eff.models.received import Looking, looking, sum_all

MODALITIES = 3


@dataclass(frozen=True)
class Passing:
    """The verified tokens of one call at one layer.

    slot:     [B, Q] their logical slot in the call    position: [B, Q] in the sequence
    modality, ordinal, valid: [B, Q] as in `Asked`     total: logical length after the call
    """

    slot: Tensor
    position: Tensor
    ordinal: Tensor
    modality: Tensor
    valid: Tensor
    total: int


def passing(call: Call, record: Columns) -> Passing:
    """The tokens that go through a layer now; shared by layers with the same survivors."""
    present = call.present()

    def make() -> Passing:
        position = call.past + present.index
        modality = record.modality.gather(1, position)
        valid = present.valid & (modality >= 0) & (present.index < call.length - call.entry.unverified)
        ordinal = (record.real.cumsum(1) - 1).gather(1, position)
        return Passing(present.index, position, ordinal, modality, valid, call.past + call.length)

    return call.shared("passing", (present, record), make)


def note_rows(
    layer: CompressedLayer, rule: CacheRows, query: Tensor, now: Passing, call: Call, mask: Any, record: Columns
) -> None:
    """Add the rows of this call that a rule wants, and drop older ones that it no longer wants.

    At a step that asks for the newest row alone the device is not asked for anything.

    query: [B, H, Q, Dh]; mask: as the model made it, at full length, or None
    """
    old = layer.book.asked.get(rule)
    if old is not None and rule == CacheRows("last", 1, steps=True) and now.slot.shape[1] == old.valid.shape[1] == 1:
        looks = call.shared(
            "newest looks", (now, mask), lambda: _looks(call, now, now.slot * 0, now.valid, mask, record)
        )
        fresh = Asked(query, now.position, now.ordinal, now.modality, now.valid, looks)
        layer.book.asked[rule] = old.replaced(fresh)
        return
    parts = [(now.position, now.ordinal, now.modality, now.valid)]
    if old is not None:
        parts = [(old.position, old.ordinal, old.modality, old.valid), *parts]
    position, ordinal, modality, valid = (torch.cat(same, 1) for same in zip(*parts, strict=True))
    split = 0 if old is None else old.position.shape[1]

    def choose() -> tuple[Tensor, Any]:
        kept = wanted_rows(rule, position, ordinal, modality, valid)
        return kept[:, :split], from_mask(kept[:, split:])

    # the first call of a prompt chooses alike in all layers
    stay, found = choose() if old is not None else call.shared(f"rows {rule}", (now,), choose)
    index = found.index

    def looking() -> Tensor:
        return _looks(call, now, index, found.valid, mask, record)

    fresh = Asked(
        gather_rows(query, index),
        now.position.gather(1, index),
        now.ordinal.gather(1, index),
        now.modality.gather(1, index),
        found.valid,
        call.shared(f"looks {rule}", (now, found, mask), looking),
    )
    layer.book.asked[rule] = fresh if old is None else old.only(stay).join(fresh)


def _looks(call: Call, now: Passing, index: Tensor, valid: Tensor, mask: Any, record: Columns) -> Tensor:
    """Logical columns that rows may look at [B, R, S]: what the model's own mask says, or all before them."""
    if isinstance(mask, Tensor) and mask.dim() == 4:
        at = now.slot.gather(1, index)[:, :, None].expand(-1, -1, mask.shape[-1])
        rows = mask[:, 0].expand(call.rows, -1, -1).gather(1, at)
        looks = rows if rows.dtype == torch.bool else rows > torch.finfo(rows.dtype).min / 2
    else:
        place = torch.arange(now.total, device=index.device)
        looks = place <= now.position.gather(1, index)[:, :, None]
    return looks & record.real[:, None, : looks.shape[-1]] & valid[:, :, None]


def note_sums(layer: CompressedLayer, kinds: tuple[CacheSums, ...], source: Source, now: Passing) -> None:
    """Add what all keys receive from the verified rows of this call."""
    seen = looking(source, None, now.valid)
    if seen is not None and seen.sight.looks is not None and seen.sight.looks.shape[1] > 1:
        # what rows look at differs between the heads
        seen = None
    slow = tuple(kind for kind in kinds if seen is None or kind.kind == "modality")
    made = _sums_of_logits(slow, source, now) if slow else {}
    for kind in kinds:
        if seen is not None and kind not in made:
            made[kind] = _fused_sums(kind, source, now, seen)
        old = layer.book.sums.get(kind)
        layer.book.sums[kind] = made[kind] if old is None else old.add(made[kind].got, made[kind].looks)


def _fused_sums(kind: CacheSums, source: Source, now: Passing, seen: Looking) -> Sums:
    """Sums of one column without a logit outside of the kernel."""
    batch, device = now.valid.shape[0], now.valid.device
    weight = now.valid.float()
    if kind.kind == "longest":
        weight = weight * seen.keys(batch, device)
    looks = seen.rows(batch, device)[:, None, :, None]
    return Sums(sum_all(source, seen, weight)[..., None], looks.repeat(1, source.key.shape[1], 1, 1))


def _sums_of_logits(kinds: tuple[CacheSums, ...], source: Source, now: Passing) -> dict[CacheSums, Sums]:
    """Sums from logits, some rows at a time: rows of three modalities in one pass, or logits that are changed."""
    batch, count = now.slot.shape
    heads = source.query(now.slot[:, :1] * 0).shape[1]
    key_heads, keys = source.key.shape[1], source.key.shape[2]
    got = {kind: torch.zeros(batch, key_heads, keys, _width(kind), device=source.key.device) for kind in kinds}
    looks = {kind: torch.zeros_like(got[kind]) for kind in kinds}
    step = rows_at_once(batch, heads, keys)
    place = torch.arange(count, device=source.key.device).expand(batch, -1)
    for start in range(0, count, step):
        at = place[:, start : start + step]
        counted = now.valid[:, start : start + step]
        logits = row_logits(source, at)
        sees = torch.isfinite(logits) & counted[:, None, :, None]
        weight = logits.softmax(-1).masked_fill(~sees, 0.0)
        weight = weight.view(batch, key_heads, -1, *weight.shape[2:]).sum(2)
        sees = sees.view(batch, key_heads, -1, *sees.shape[2:])[:, :, 0].float()
        for kind in kinds:
            spread = _spread(kind, now.modality[:, start : start + step], sees)
            got[kind] += torch.einsum("bhrs,bhrc->bhsc", weight, spread)
            looks[kind] += torch.einsum("bhrs,bhrc->bhsc", sees, spread if kind.kind == "modality" else spread * 0 + 1)
    return {kind: Sums(got[kind], looks[kind]) for kind in kinds}


def _width(kind: CacheSums) -> int:
    return MODALITIES if kind.kind == "modality" else 1


def _spread(kind: CacheSums, modality: Tensor, sees: Tensor) -> Tensor:
    """How much each row counts for each column of the sums [B, Hkv, R, C]."""
    if kind.kind == "longest":
        return sees.sum(-1, keepdim=True)
    if kind.kind == "mass":
        return torch.ones_like(sees[..., :1])
    one = torch.nn.functional.one_hot(modality.clamp(min=0).long(), MODALITIES).float()
    return one[:, None].expand(-1, sees.shape[1], -1, -1)
