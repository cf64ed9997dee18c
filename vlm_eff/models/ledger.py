"""The books of a handle: what each call did, kept as small tensors and turned into numbers only when asked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_eff.core.errors import StateError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.report import PrefillReport, RevivalReport, StageReport, Stats, VisualTokens
from vlm_eff.models.adapter import Adapter
from vlm_eff.models.cache_layer import is_logical
from vlm_eff.models.call import Call, Stage
from vlm_eff.models.cost import decoder_flops
from vlm_eff.models.kv.layer import CompressedLayer
from vlm_eff.models.slots import Slots
from vlm_eff.models.step_cost import Step, Stored, most_entries, step_of


class Ledger:
    """Counts calls and keeps one entry a prefill; holds no hidden states, keys or values."""

    def __init__(self, adapter: Adapter, plugins: tuple[Plugin, ...]) -> None:
        self._adapter = adapter
        self._plugins = plugins
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._prefills: list[PrefillReport] = []
        self._pending: Callable[[], PrefillReport] | None = None
        self._decode_steps = 0
        self._calls = 0
        self._last: Call | None = None
        self._stored: list[Stored] = []
        self._revivals: list[RevivalReport] = []
        self._store_bytes = 0
        self._kv = _Held(0, 0, 0, 0)
        self._step: Step | None = None

    def revived(self, plugin: str, layer: int, counts: list[int]) -> None:
        """Note how many tokens of each row came back into `layer` in this call."""
        self._revivals.append(RevivalReport(plugin, self._calls - 1, layer, tuple(counts)))

    def stage(self, call: Call, plugin: str, layer: int, before: Tensor) -> None:
        """Note one decision: `before` [B] candidates it chose from."""
        assert call.spans is not None and call.survivors is not None
        registers, got = call.survivors.registers, call.spans.count
        if registers is not None and registers.guests:
            got = got + registers.mark.sum(1)
        call.stages.append(Stage(plugin, layer, before, got, call.survivors.fillers))

    def begin(self) -> None:
        """Note that the decoder was entered, whatever becomes of it."""
        self._calls += 1

    def close(self, call: Call, cache: Any) -> None:
        """Note a finished pass through the decoder."""
        before, self._stored = self._stored, _stored(cache, call.rows)
        self._store_bytes = _store_bytes(cache)
        self._kv = self._kv.after(call) or _kv_bytes(self._adapter, cache, call)
        if call.length == 1:
            self._decode_steps += 1
            self._step = step_of(self._adapter, call, cache, before)
            return
        self._step = None
        call.close()
        elapsed = (time.perf_counter() - call.started) * 1e3
        stored, element = self._stored, _element_bytes(cache)
        if call.spans is not None:
            self._last = call
        # the newest call waits for the question, so that a GPU is not asked in between; older ones become numbers now,
        # so that a long evaluation keeps no tensors
        self._settle()
        self._pending = lambda: _report(self._adapter, self._plugins, call, stored, element, elapsed)

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            self._prefills.append(pending())

    def stats(self) -> Stats:
        """All reports so far."""
        self._settle()
        names = tuple(plugin.name for plugin in self._plugins)
        return Stats(
            names,
            self._adapter.name,
            list(self._prefills),
            self._decode_steps,
            self._calls,
            revivals=list(self._revivals),
            store_bytes=self._store_bytes,
            kv_bytes=self._kv.stored,
            kv_bytes_bare=self._kv.bare,
            ranks=self._adapter.ranks.size,
            step_flops=0.0 if self._step is None else self._step.flops(self._adapter, self._stored),
            step_flops_bare=0.0 if self._step is None else self._step.bare(self._adapter),
        )

    def survivors(self, layer: int) -> list[Tensor]:
        """Original slots present at `layer` in the last prefill with visual tokens, one tensor [n] a row."""
        self._check(layer)
        call = self._last
        if call is None:
            raise _nothing_yet()
        survivors = call.maps.get(layer)
        if survivors is None:
            return list(torch.arange(call.length).expand(call.rows, -1))
        # registers may stand behind text on slots before it
        return [row[ok].sort().values.cpu() for row, ok in zip(survivors.index, survivors.owner, strict=True)]

    def attended(self, layer: int) -> list[Tensor]:
        """Original slots that took part in the attention of `layer`, one tensor [n] a row."""
        survivors = self.survivors(layer)
        assert self._last is not None
        among = self._last.attended.get(layer)
        if among is None:
            return survivors
        return [row[ok].cpu() for row, ok in zip(among.index, among.valid, strict=True)]

    def visual(self, layer: int) -> list[VisualTokens]:
        """The candidates of the last prefill with visual tokens, and which are present at `layer`; one a row."""
        made = []
        for row, present in enumerate(self.survivors(layer)):
            assert self._last is not None and self._last.original is not None
            spans = self._last.original
            ok = spans.valid[row]
            slot, image, group, y, x = (
                t[row][ok].cpu() for t in (spans.slot, spans.image, spans.group, spans.y, spans.x)
            )
            kept = torch.isin(slot, present)
            made.append(VisualTokens(slot, image, group, y, x, kept, self._weights(row, layer, slot) * kept))
        return made

    def _weights(self, row: int, layer: int, slot: Tensor) -> Tensor:
        """How many tokens each candidate of a row stands for at `layer` [n]: what was merged last counts."""
        weight = torch.ones(len(slot))
        assert self._last is not None
        for at, slots, weights in self._last.merged:
            if at <= layer:
                where = (slot[:, None] == slots[row].cpu()) & (weights[row].cpu() > 0)
                weight = torch.where(where.any(1), (where * weights[row].float().cpu()).sum(1), weight)
        return weight

    def kv_positions(self, layer: int) -> Tensor:
        """Logical positions stored at `layer` after the last call [B, Hkv, S]; -1 for none."""
        self._check(layer)
        if not self._stored:
            raise _nothing_yet()
        slots, rows, heads = self._stored[layer]
        if callable(slots):
            return slots().long().cpu()
        if isinstance(slots, int):
            slots = Slots.plain(rows, slots, torch.device("cpu"))
        index, valid = slots.positions()
        return index.masked_fill(~valid, -1).cpu().expand(rows, -1)[:, None].expand(-1, heads, -1)

    def _check(self, layer: int) -> None:
        if not 0 <= layer < self._adapter.num_layers:
            raise StateError(
                explain(f"layer {layer}", f"layers 0 to {self._adapter.num_layers - 1}", "Ask for an existing layer")
            )


def _nothing_yet() -> StateError:
    return StateError(
        explain("no call with visual tokens was seen yet", "a handle whose model was called", "Call the model first")
    )


def _stored(cache: Any, rows: int) -> list[Stored]:
    """What each cache layer stores: its slots, or its length when nothing is missing; rows and heads."""
    if cache is None:
        return []
    made: list[Stored] = []
    for layer in cache.layers:
        heads = layer.keys.shape[1] if layer.keys is not None and layer.keys.dim() == 4 else 1
        what = layer.snapshot() if isinstance(layer, CompressedLayer) else None
        made.append((what or (layer.slots if is_logical(layer) else _plain(layer)), rows, heads))
    return made


def _plain(layer: Any) -> Slots | int:
    """What an untouched layer stores: everything, or the end of it when it slides."""
    length = int(layer.get_seq_length())
    stored = int(layer.keys.shape[-2]) if getattr(layer, "is_sliding", False) and length else length
    return length if stored == length else Slots.plain(1, length, torch.device("cpu")).keep_last(stored)


def _store_bytes(cache: Any) -> int:
    """Bytes that the dropped tokens take that are kept to be brought back."""
    stores = [getattr(layer, "store", None) for layer in cache.layers] if cache is not None else []
    return sum(store.bytes for store in stores if store is not None)


def _element_bytes(cache: Any) -> tuple[tuple[int, int, int], ...]:
    """(stored entries a row, bytes of a bare entry's key and value over all heads, all bytes) of each cache layer."""
    if cache is None:
        return ()
    made = []
    for layer in cache.layers:
        if layer.keys is None or layer.keys.dim() != 4:
            made.append((0, 0, 0))
            continue
        one = sum(t.shape[1] * t.shape[3] * t.element_size() for t in (layer.keys, layer.values))
        rows, _, stored, _ = layer.keys.shape
        if isinstance(layer, CompressedLayer):
            made.append((layer.packed + layer.slots.stored, one, layer.bytes))
        else:
            made.append((int(stored), one, int(rows * stored * one)))
    return tuple(made)


@dataclass(frozen=True)
class _Held:
    """Bytes held after a call and what a bare model would hold; the logical length then, and what a step adds to both.

    step is 0 where layers do not all grow alike, so that each call has to be looked at.
    """

    stored: int
    bare: int
    length: int
    step: int

    def after(self, call: Call) -> _Held | None:
        """The same after a decode step that compressed nothing; None where the cache has to be looked at."""
        if not self.step or call.compressed or call.length != 1 or call.past != self.length:
            return None
        return _Held(self.stored + self.step, self.bare + self.step, self.length + 1, self.step)


def _kv_bytes(adapter: Adapter, cache: Any, call: Call) -> _Held:
    if cache is None or not any(isinstance(layer, CompressedLayer) for layer in cache.layers):
        return _Held(0, 0, 0, 0)
    element, total = _element_bytes(cache), call.past + call.length
    bare = sum(min(total, most_entries(adapter, layer)) * one for layer, (_, one, _) in enumerate(element))
    # what goes on being observed while decoding is held too; rows may be shared between layers
    books = [layer.book for layer in cache.layers if isinstance(layer, CompressedLayer)]
    watched = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for b in books for one in b.buffers()}
    alike = not watched and all(isinstance(layer, CompressedLayer) for layer in cache.layers)
    step = call.rows * sum(one for _, one, _ in element) if alike else 0
    return _Held(sum(held for _, _, held in element) + sum(watched.values()), call.rows * bare, total, step)


def _report(
    adapter: Adapter,
    plugins: tuple[Plugin, ...],
    call: Call,
    stored: list[Stored],
    element: tuple[tuple[int, int, int], ...],
    elapsed: float,
) -> PrefillReport:
    layers = range(adapter.num_layers)
    visual = call.original.count.tolist() if call.original is not None else [0] * call.rows
    present, now = [], sum(visual) / call.rows
    stages = {stage.layer: stage for stage in call.stages}
    for layer in layers:
        if layer in stages:
            now = float(stages[layer].got.float().mean())
        present.append(now)
    # layers before the first hooked one see everything
    sizes = [call.sequence.get(layer, (call.length, call.past)) for layer in layers]
    sequence = [size for size, _ in sizes]
    attended = [call.attended[layer].size if layer in call.attended else sequence[layer] for layer in layers]
    keys = [size + past for size, (_, past) in zip(attended, sizes, strict=True)]
    listed = [float(call.listed[layer][0]) if layer in call.listed else 1.0 for layer in layers]
    computed = [share if layer in call.listed and call.listed[layer][1] else 1.0 for layer, share in enumerate(listed)]
    asking = [attended[layer] * computed[layer] * call.again.get(layer, 1) for layer in layers]
    asked = _asked(adapter, plugins, call, visual)
    asked_per_layer = [sum(row[layer] for row in asked) / call.rows for layer in layers]
    total = call.past + call.length
    bare = [min(call.past, most_entries(adapter, layer)) + call.length for layer in layers]
    return PrefillReport(
        rows=call.rows,
        length=call.length,
        past=call.past,
        visual=tuple(visual),
        visual_per_layer=tuple(present),
        sequence_per_layer=tuple(sequence),
        attended_per_layer=tuple(attended),
        asked_per_layer=tuple(asked_per_layer),
        stages=tuple(_stage(stage) for stage in call.stages),
        kv_tokens=tuple(count for count, _, _ in element),
        kv_logical=total,
        kv_bytes=sum(held for _, _, held in element),
        kv_bytes_bare=call.rows
        * sum(min(total, most_entries(adapter, layer)) * one for layer, (_, one, _) in enumerate(element)),
        flops=decoder_flops(adapter, sequence, keys, call.rows, asking),
        flops_bare=decoder_flops(adapter, [call.length] * len(layers), bare, call.rows),
        host_ms=elapsed,
        selection_ms=call.deciding * 1e3,
        masks_built=call.masks_built,
        listed_per_layer=tuple(listed),
        computed_per_layer=tuple(computed),
    )


def _asked(adapter: Adapter, plugins: tuple[Plugin, ...], call: Call, visual: list[int]) -> list[list[float]]:
    """What the plugins asked for, of each row at each layer; where only the call could tell, what was got."""
    stages = {stage.layer: stage.got.tolist() for stage in call.stages}
    made = []
    for row, count in enumerate(visual):
        asked, got, wanted = [p.asked(count, adapter.num_layers) for p in plugins], float(count), []
        for layer in range(adapter.num_layers):
            got = float(stages[layer][row]) if layer in stages else got
            wanted.append(min(got if math.isnan(one[layer]) else one[layer] for one in asked))
        made.append(wanted)
    return made


def _stage(stage: Stage) -> StageReport:
    return StageReport(
        stage.plugin, stage.layer, tuple(stage.before.tolist()), tuple(stage.got.tolist()), stage.fillers
    )
