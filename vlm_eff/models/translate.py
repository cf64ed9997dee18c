"""From logical to physical inside a layer call: rotary tables and mask of what is left, and what the cache stores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.models.adapter import Adapter
from vlm_eff.models.cache_layer import ensure_layer, is_logical, make_logical, stored_layer
from vlm_eff.models.call import Call
from vlm_eff.models.kv.layer import CompressedLayer
from vlm_eff.models.kv.masks import Wanted, mask_of_heads
from vlm_eff.models.layer_call import LayerCall
from vlm_eff.models.masks import map_mask
from vlm_eff.models.revive import Reviver
from vlm_eff.models.rotary import tables_of
from vlm_eff.models.slots import Slots
from vlm_eff.models.soft import soften
from vlm_eff.models.token_map import TokenMap


class Translator:
    """Brings a layer call to the survivors and to the entries of its cache layer."""

    def __init__(self, adapter: Adapter, reviver: Reviver) -> None:
        self._adapter = adapter
        self._reviver = reviver

    def translate(self, call: Call, index: int, now: LayerCall, hidden: Tensor) -> None:
        """Bring rotary tables and mask of a layer call to the survivors and to what the layer's cache stores."""
        slots, survivors = self.slots(call, now.cache, index), call.survivors
        stored = stored_layer(now.cache, index)
        if isinstance(stored, CompressedLayer):
            if stored.compressed:
                self._by_head(call, index, now, hidden, stored)
                return
            if survivors is None and slots.whole and call.log_weight is None:
                # nothing is missing yet: mask and tables are right as they are
                return
        if call.extra is not None:
            self._reviver.translate(call, now, slots)
            return
        now.kwargs["position_embeddings"] = tables_of(self._adapter, call, index, now, hidden, slots)
        mask, total = now.mask, slots.logical + call.length
        if mask is None and call.length == 1 and not slots.ragged:
            return
        keys, valid = call.shared(
            "keys", (slots.index, slots.start, slots.stop, survivors), lambda: _keys(call, slots, survivors)
        )
        made = call.shared("mask", (mask, keys), lambda: map_mask(mask, keys, valid, survivors, total, call.length))
        if mask is None and made is not None:
            call.masks_built += 1
        if call.log_weight is not None:
            weight, ordered = call.log_weight, self._adapter.ordered
            keys = (mask, weight)
            made = call.shared(
                "soft", keys, lambda: soften(made, weight, hidden.dtype, ordered=ordered, past=call.past)
            )
        now.kwargs["attention_mask"] = made

    def _by_head(self, call: Call, index: int, now: LayerCall, hidden: Tensor, stored: CompressedLayer) -> None:
        """The mask of a layer whose heads store different entries, and rotary tables."""
        if call.log_weight is not None:
            raise CapabilityError(
                explain("soft weights of tokens over a compressed cache", "one of the two", "Attach one of the plugins")
            )
        now.kwargs["position_embeddings"] = tables_of(self._adapter, call, index, now, hidden, stored.slots)
        weight, mask = stored.weights(), now.mask
        if mask is None and call.length == 1 and weight is None and not stored.ragged:
            return
        survivors, flash = call.survivors, "flash" in self._adapter.decoder.config._attn_implementation
        keys, ragged = stored.coming(call, survivors)
        if weight is not None:
            weight = torch.nn.functional.pad(weight, (0, keys.shape[2] - weight.shape[2]), value=1.0)
        heads = self._adapter.layers[index].self_attn.num_key_value_groups * keys.shape[1]
        wanted = Wanted(heads, hidden.dtype, call.past, call.length, ragged, flash and not stored.segments)
        now.kwargs["attention_mask"] = mask_of_heads(mask, keys, weight, survivors, wanted)

    def passes(self, cache: Any, index: int, mask: Any) -> bool:
        """True when a decode step needs nothing at a layer of a compressed cache; then its cache knows what comes."""
        layer = stored_layer(cache, index)
        if not isinstance(layer, CompressedLayer) or layer.slots.shift is not None:
            return False
        plain = mask is None and not layer.ragged and not layer.weighted if layer.compressed else layer.slots.whole
        if plain:
            layer.ticket = _one_more
        return plain

    def stamp(self, call: Call, cache: Any, index: int) -> None:
        """Tell the layer's cache which positions the next update brings."""
        if cache is None:
            return
        ensure_layer(cache, index)
        layer = make_logical(cache.layers[index], call.rows, call.device)
        if layer.slots.stored == 0 and layer.slots.index.shape[0] != call.rows:
            layer.slots = Slots.plain(call.rows, 0, call.device)
        survivors, shift = call.survivors, call.shift
        if survivors is None:
            layer.ticket = self._reviver.ticket(call)
            return
        if (shed := call.shed.get(index)) is not None:
            layer.store = shed if layer.store is None else layer.store.join(shed)
        layer.make_room(survivors.guests)
        last, kept = call.last_visual, survivors
        layer.ticket = lambda old: call.shared(
            "slots",
            (old.index if old.index.numel() else 0, old.start, old.stop, kept),
            lambda: old.append(kept, last, shift if shift is not None else old.shift),
        )

    def stored(self, call: Call, cache: Any, index: int) -> int:
        """Entries that a layer stores in each row and head, fillers included."""
        layer = stored_layer(cache, index)
        packed = layer.packed if isinstance(layer, CompressedLayer) else 0
        return packed + self.slots(call, cache, index).stored

    def slots(self, call: Call, cache: Any, index: int) -> Slots:
        layer = stored_layer(cache, index)
        if layer is None:
            return call.shared("none", (), lambda: Slots.plain(call.rows, 0, call.device))
        if is_logical(layer):
            slots: Slots = layer.visible()
            return slots if slots.index.shape[0] == call.rows else Slots.plain(call.rows, 0, call.device)
        length = int(layer.get_seq_length())
        plain = call.shared("plain", (length,), lambda: Slots.plain(call.rows, length, call.device))
        return plain.keep_last(layer.sliding_window - 1) if getattr(layer, "is_sliding", False) else plain


def _one_more(slots: Slots) -> Slots:
    return slots.grow(1)


def _keys(call: Call, slots: Slots, survivors: TokenMap | None) -> tuple[Tensor, Tensor | None]:
    """Logical position of every key the layer will see [B, K], and which are no fillers (None: all)."""
    grown = slots.grow(call.length) if survivors is None else slots.append(survivors, call.length - 1, None)
    index, valid = grown.positions()
    return index, valid if grown.ragged else None
