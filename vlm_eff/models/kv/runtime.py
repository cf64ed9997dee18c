"""What happens to the KV cache: observed while layers attend, compressed between two forward passes.

Decoder, before   a decode step finds everything stored verified: now plugins decide and layers are written
Layer, before     its empty cache layer becomes one that can be compressed; the sequence's columns are noted
Layer, inside     query rows and sums are noted; a packed cache is attended to group by group; a table of modalities
                  scales the logits
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vlm_eff.core.cache import PADDING, TEXT, CachePlaces, CacheRows, CacheSite, CacheSums, LogitSite
from vlm_eff.core.errors import StateError, explain
from vlm_eff.core.handle import Undo
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.resources import Resource
from vlm_eff.importance.modality_table import scale_logits
from vlm_eff.models.adapter import Adapter
from vlm_eff.models.cache_layer import ensure_layer, is_logical, stored_layer
from vlm_eff.models.call import Call
from vlm_eff.models.kv.attend import PackedAttention
from vlm_eff.models.kv.book import Columns
from vlm_eff.models.kv.compress import Compressor
from vlm_eff.models.kv.layer import CompressedLayer, Packed, check_layer, compressed_layers, make_compressed
from vlm_eff.models.kv.observing import note_rows, note_sums, passing
from vlm_eff.models.kv.places import Rotary
from vlm_eff.models.kv.scoring import Gradients, Scorer, note_gradients
from vlm_eff.models.kv.table import ScaledAttention, lines_of, table_of
from vlm_eff.models.kv.view import Traits, modality_at
from vlm_eff.models.observe import Tapped, tapped_source
from vlm_eff.models.place import moved
from vlm_eff.models.slots import Slots
from vlm_eff.models.tap import Instead, install_tap


@dataclass
class Passed:
    """What one call keeps to itself, so that calls of other threads do not meet it.

    record: the columns of the sequence with those of this call; cache: where they go
    masks:  as the model made them, at full length, by layer; scored: gradients by layer and column of the sequence
    before: what layers with a window stored when the call came, where tokens are missing
    """

    record: Columns
    cache: weakref.ref[Any] | None
    masks: dict[int, Any] = field(default_factory=dict)
    before: dict[int, Slots] = field(default_factory=dict)
    scored: Gradients = field(default_factory=dict)

    def follow(self, device: torch.device) -> None:
        """Bring what layers look at to the device of the one that runs next."""
        self.record, self.before = moved(self.record, device), moved(self.before, device)


class CacheRuntime:
    """Carries out the plugins of the cache on one model; what it keeps of a sequence is in the cache's layers."""

    def __init__(self, adapter: Adapter, plugins: tuple[Plugin, ...]) -> None:
        self._adapter = adapter
        asked = (p for p in plugins if any(isinstance(s, CacheSite | LogitSite) for s in p.sites))
        # packed entries are closed: whoever evicts decides first, in whatever order plugins were given
        self.plugins = tuple(sorted(asked, key=lambda plugin: Resource.CACHE_ENTRIES not in plugin.writes))
        self._table = table_of(plugins)
        needs = tuple(dict.fromkeys(need for plugin in self.plugins for need in plugin.needs))
        self._rules = tuple(need for need in needs if isinstance(need, CacheRows))
        self._kinds = tuple(need for need in needs if isinstance(need, CacheSums))
        self._placed = CachePlaces() in needs
        self.layers = adapter.cache_layers if self.plugins else ()
        self.scorer = Scorer(adapter, needs, self.layers, plain=self._table is None)
        self._members = frozenset(self.layers)
        noting = any(rule.steps for rule in self._rules) or any(kind.steps for kind in self._kinds)
        self._stepping = noting or self._table is not None
        self.compressor = Compressor(adapter, self.plugins, self.layers)
        self._last: Passed | None = None

    @property
    def hooked(self) -> tuple[int, ...]:
        """Layers inside whose attention something is seen or done."""
        return self.layers if self._table is None else tuple(range(self._adapter.num_layers))

    @property
    def active(self) -> bool:
        """True when any plugin acts on the cache."""
        return bool(self.plugins)

    def install(self, current: Callable[[], Call | None], undo: Undo) -> None:
        """Put the tap on, over those of others."""
        if self.layers:
            attention = {index: self._adapter.layers[index].self_attn for index in self.hooked}
            install_tap(attention, partial(self._saw, current), undo)

    # ---------------------------------------------------------------- between two forward passes

    def begin(self, call: Call, cache: Any, position_ids: Tensor | None) -> None:
        """Refuse caches that cannot be compressed, and compress when this call is a decode step."""
        if cache is None:
            call.passed = Passed(self._columns(call, None, position_ids), None)
            return
        for index in self.layers:
            if index < len(cache.layers):
                check_layer(cache.layers[index])
        layers = compressed_layers(cache)
        lead = layers.get(self.layers[0])
        if lead is not None and lead.get_seq_length() and call.length - call.entry.unverified == 1:
            self.compressor.settle(call, layers)
        started = lead if lead is not None and lead.get_seq_length() else None
        call.passed = Passed(self._columns(call, started, position_ids), weakref.ref(cache))

    # ---------------------------------------------------------------- while layers run

    def _columns(self, call: Call, lead: CompressedLayer | None, position_ids: Tensor | None) -> Columns:
        modality = call.modality
        if modality is None:
            modality = torch.full((call.rows, call.length), TEXT, dtype=torch.int8, device=call.device)
        modality = modality.masked_fill(~call.real(), PADDING)
        new = Columns(modality, _places(position_ids, call) if self._placed else None)
        old = lead.book.columns if lead is not None else None
        # a call that failed may have noted columns that never came
        return new if old is None else moved(old, call.device).cut(call.past).join(new)

    def enter(self, call: Call, index: int, cache: Any, mask: Any) -> None:
        """Make the layer's cache one that can be compressed, and note what this call brings."""
        passed = call.passed
        if cache is None or passed is None:
            return
        if index not in self._members:
            layer = stored_layer(cache, index) if self._table is not None else None
            if is_logical(layer):
                passed.before[index] = layer.visible()
            return
        ensure_layer(cache, index)
        passed.masks[index] = mask
        if passed.cache is None or passed.cache() is not cache:
            passed.cache = weakref.ref(cache)
        layer = make_compressed(cache.layers[index], call.rows, call.device)
        if index == self.layers[0]:
            layer.book.columns = passed.record
        verified = call.length - call.entry.unverified
        if verified > 1 or call.past == 0:
            layer.book.prompt = call.past + verified

    def _saw(
        self, current: Callable[[], Call | None], index: int, query: Tensor, key: Any, mask: Any, kwargs: dict[str, Any]
    ) -> Instead | None:
        call = current()
        passed = None if call is None else call.passed
        if call is None or passed is None:
            return None
        if call.length == 1 and call.past and not self._stepping and not isinstance(key, Packed):
            return None
        if (scaling := kwargs.get("scaling")) is None:
            scaling = query.shape[-1] ** -0.5
        attention = self._adapter.layers[index].self_attn
        table = None if self._table is None else self._table.to(query.device)
        self.compressor.traits[index] = traits = Traits(scaling, kwargs.get("softcap"), attention, table)
        rotary = self.compressor.rotary(index, passed.record)
        layer = _layer(passed, index)
        if layer is not None:
            self._observe(call, passed, index, layer, query, key, mask, rotary)
        packed = None
        if isinstance(key, Packed):
            packed = PackedAttention(key, traits, rotary, whole=call.spans is not None)
        if self._table is None:
            return packed
        queries = passing(call, passed.record).modality
        lines = call.shared("lines", (queries,), partial(lines_of, self._table, call, queries))
        if packed is None and all(line.neutral for line in lines):
            return None
        call.again[index] = len(lines)
        count = key.count if isinstance(key, Packed) else key.shape[2]
        return ScaledAttention(lines, _modalities(call, passed, index, count), packed)

    def _observe(
        self,
        call: Call,
        passed: Passed,
        index: int,
        layer: CompressedLayer,
        query: Tensor,
        key: Any,
        mask: Any,
        rotary: Rotary | None,
    ) -> None:
        step = call.past > 0 and call.length - call.entry.unverified == 1
        rules = [rule for rule in self._rules if rule.steps or not step]
        kinds = tuple(kind for kind in self._kinds if kind.steps or not step)
        if not rules and not kinds:
            return
        now = passing(call, passed.record)
        for rule in rules:
            note_rows(layer, rule, query, now, call, passed.masks.get(index), passed.record)
        if kinds:
            dense = key.dense(rotary)[0] if isinstance(key, Packed) else key
            traits = self.compressor.traits[index]
            seen = Tapped(query, dense, mask, traits.scaling, traits.softcap, None, None, call.present())
            attention = self._adapter.layers[index].self_attn
            source = tapped_source(seen, attention, rope=True)
            if traits.table is not None:
                keys, queries = _modalities(call, passed, index, dense.shape[2]), now.modality

                def factor(logits: Tensor, slots: Tensor) -> Tensor:
                    assert traits.table is not None
                    return scale_logits(logits, traits.table, queries.gather(1, slots), keys)

                source = replace(source, factor=factor)
            note_sums(layer, kinds, source, now)

    def leave(self, call: Call) -> None:
        """Note who took part in each layer's attention; let go of the rest: the handle is asked of the last call."""
        passed = call.passed
        if passed is not None:
            passed.masks.clear()
            for index, tokens in call.attended.items():
                layer = _layer(passed, index)
                if layer is not None:
                    layer.book.join_attended(call.past, tokens)
            note_gradients(passed.scored, compressed_layers(None if passed.cache is None else passed.cache()))
            passed.scored = {}
        self._last = passed

    # ---------------------------------------------------------------- what the handle asks

    def dense_keys(self, call: Call, index: int) -> Tensor:
        """All keys of a layer that a call found [B, Hkv, S, Dh], unpacked."""
        assert call.passed is not None
        layer = _layer(call.passed, index)
        assert layer is not None
        return layer.dense_keys(self.compressor.rotary(index, call.passed.record))

    def modalities(self, positions: Tensor) -> Tensor:
        """What stands at logical `positions` [B, Hkv, S] int8 after the last call; -1 for padding and fillers."""
        if self._last is None:
            got, accepted = "no call of a model with a plugin of the cache", "modalities behind such a call"
            raise StateError(explain(got, accepted, "Attach one, such as snapkv(), and call the model"))
        record = self._last.record
        return modality_at(record, positions.to(record.modality.device)).cpu()

    def contents(self, index: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values [B, Hkv, S, Dh] as a layer attends to them, and the log of what each entry stands for."""
        layer = None if self._last is None else _layer(self._last, index)
        if self._last is None or layer is None or layer.keys is None:
            raise StateError(
                explain(
                    f"layer {index} without a cache", "a layer of a cache in use", "Call the model with a cache first"
                )
            )
        key, value = Packed(layer.segments, layer.keys, layer.values).dense(
            self.compressor.rotary(index, self._last.record)
        )
        weight = layer.weights()
        return key, value, None if weight is None else weight.clamp(min=1).log()


def _layer(passed: Passed, index: int) -> CompressedLayer | None:
    cache = None if passed.cache is None else passed.cache()
    if cache is None or index >= len(cache.layers):
        return None
    layer = cache.layers[index]
    return layer if isinstance(layer, CompressedLayer) else None


def _modalities(call: Call, passed: Passed, index: int, count: int) -> Tensor:
    """What the `count` keys are that a layer attends to now [B, 1 or Hkv, count] int8."""
    layer = _layer(passed, index)
    if layer is not None:
        return modality_at(passed.record, layer.positions())
    survivors = call.present()
    new = (call.past + survivors.index).masked_fill(~survivors.valid, -1)
    past = count - new.shape[1]
    if index in passed.before:
        place, valid = passed.before[index].positions()
        old = place.masked_fill(~valid, -1)[:, place.shape[1] - past :]
    else:
        old = torch.arange(call.past - past, call.past, device=new.device).expand(call.rows, -1)
    return modality_at(passed.record, torch.cat([old, new], 1)[:, None])


def _places(position_ids: Tensor | None, call: Call) -> Tensor:
    """Rotary positions of this call's columns [A, B, S] int32."""
    if position_ids is None:
        made = call.past + torch.arange(call.length, device=call.device).expand(1, call.rows, -1)
    elif position_ids.dim() == 3:
        # some models put the text positions in front of time, height and width
        made = position_ids[-3:].expand(3, call.rows, -1)
    else:
        made = (
            position_ids.expand(1, call.rows, -1)
            if position_ids.dim() == 1
            else position_ids.expand(call.rows, -1)[None]
        )
    return made.int()
