"""The full-cache oracle: the unmodified model with a plain full cache, in which given entries are never seen again.

Evicting an entry of one layer and head must equal hiding its column from that head's queries in a cache that still
holds everything. The oracle does only the latter, through hooks of its own on each layer's attention, so it shares no
code and no idea with the library under test. Which entries are there is read from the run under test, call by call
(`recording`), and played back to the bare model (`replaying`): with plain `generate`, beams, chunks, candidates that
are cropped, or calls made by hand.

Where a cache stores something else than the model computed (quantised, merged or factorised entries), the oracle puts
what is said to be stored (`handle.kv_contents`) into the full cache before the call, and adds the logarithm of how many
entries one stands for to its logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.oracle import decoder_layers, explicit_mask

Contents = tuple[Tensor, Tensor, Tensor | None]
"""of the stored entries: keys [B, Hkv, P, Dh], values [B, Hkv, P, Dh], log multiplicity [B, Hkv, P] or None"""


@dataclass(frozen=True)
class Entries:
    """What one layer stores after a call; `positions` [B, Hkv, P] are logical, -1 where there is nothing."""

    positions: Tensor
    contents: Contents | None = None

    def among(self, total: int) -> Tensor:
        """Bool [B, Hkv, total]: which of the positions 0..total-1 are stored."""
        return self.spread(torch.ones_like(self.positions, dtype=torch.bool), total)

    def spread(self, stored: Tensor, total: int) -> Tensor:
        """What belongs to stored entries [B, Hkv, P, ...] put to their places [B, Hkv, total, ...], zero elsewhere."""
        made = stored.new_zeros(*self.positions.shape[:2], total + 1, *stored.shape[3:])
        # nothing goes to the seat behind the last one, which is cut off
        seat = torch.where((self.positions >= 0) & (self.positions < total), self.positions, total)
        for batch, head in torch.cartesian_prod(*(torch.arange(size) for size in seat.shape[:2])).tolist():
            made[batch, head, seat[batch, head]] = stored[batch, head]
        return made[:, :, :total]


Record = list[list[Entries]]
"""call -> decoder layer -> what it stores after the call"""


@contextmanager
def recording(model: nn.Module, handle: Any, contents: bool = False) -> Iterator[Record]:
    """While open, note what every layer of the cache stores after each call of `model`, which `handle` is attached to.

    Entries are evicted between calls, before the next one runs: what is there after a call is what the call saw.
    """
    record: Record = []
    # a window forgets by itself, and nothing else is done to it
    whole = [not slides(layer.self_attn) for layer in decoder_layers(model)]

    def note(*_: Any) -> None:
        made = []
        for index, is_whole in enumerate(whole):
            stored = _copied(handle.kv_contents(index)) if contents and is_whole else None
            made.append(Entries(handle.kv_positions(index).clone(), stored))
        record.append(made)

    hook = model.register_forward_hook(note)
    try:
        yield record
    finally:
        hook.remove()


def slides(attention: Any) -> bool:
    """True for a layer with a window."""
    return getattr(attention, "sliding_window", None) is not None


def _copied(contents: Contents) -> Contents:
    key, value, multiplicity = contents
    return key.clone(), value.clone(), None if multiplicity is None else multiplicity.clone()


@contextmanager
def replaying(model: nn.Module, record: Sequence[Sequence[Entries | None]]) -> Iterator[None]:
    """While open, call i of the bare `model` sees in every layer what `record[i]` says; None stands for everything.

    A query always sees itself: tokens that another plugin dropped stay finite, mean nothing, and are seen by nobody.
    Raises when there are more calls than the record holds, and when it holds more than were made.
    """
    calls = [-1]
    hooks = [model.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))]
    for index, layer in enumerate(decoder_layers(model)):

        def see(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> Any:
            if calls[0] >= len(record):
                raise AssertionError(f"call {calls[0]} was never made by the run under test")
            entries = record[calls[0]][index]
            return None if entries is None else _seen(attention, index, args, kwargs, entries)

        hooks.append(layer.self_attn.register_forward_pre_hook(see, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    assert calls[0] + 1 == len(record), f"{calls[0] + 1} calls, the run under test made {len(record)}"


def _seen(
    attention: Any, index: int, args: tuple[Any, ...], kwargs: dict[str, Any], entries: Entries
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if slides(attention):
        return None
    hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    cache = kwargs["past_key_values"]
    past, length = cache.get_seq_length(index), hidden.shape[1]
    total = past + length
    if entries.contents is not None and past:
        _store(cache.layers[index], entries, past)
    queries = torch.arange(past, total)
    mask = kwargs.get("attention_mask")
    if mask is None:
        mask = explicit_mask(attention, queries, total, hidden)
    group = attention.num_key_value_groups
    own = queries[:, None] == torch.arange(total)[None]
    gone = ~entries.among(total)[:, :, None] & ~own
    mask = mask.expand(hidden.shape[0], gone.shape[1] * group, length, total)
    gone = gone.repeat_interleave(group, 1)
    lowest = torch.finfo(hidden.dtype).min
    bias = None if entries.contents is None else entries.contents[2]
    if bias is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=hidden.dtype).masked_fill(~mask, lowest)
    if bias is not None:
        mask = mask + entries.spread(bias.to(hidden.dtype), total).repeat_interleave(group, 1)[:, :, None]
    mask = mask.masked_fill(gone, False if mask.dtype == torch.bool else lowest)
    return args, kwargs | {"attention_mask": mask}


def _store(layer: Any, entries: Entries, past: int) -> None:
    """Put the said contents of the entries below `past` into a full cache layer."""
    assert entries.contents is not None
    there = entries.among(past)[..., None]
    for name, stored in zip(("keys", "values"), entries.contents[:2], strict=True):
        full = getattr(layer, name)
        setattr(layer, name, torch.where(there, entries.spread(stored.to(full.dtype), past), full))


def everything(model: nn.Module, rows: int, heads: int, lengths: Sequence[int]) -> Record:
    """The record of calls after which `lengths[i]` positions are stored, all of them, in every layer."""
    return [
        [Entries(torch.arange(length).expand(rows, heads, -1)) for _ in decoder_layers(model)] for length in lengths
    ]
