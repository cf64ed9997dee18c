"""Compressing a cache between two forward passes: plugins are asked in turn, and layers are written one at a time."""

from __future__ import annotations

import time
from functools import partial

from vlm_eff.core.cache import CacheSite, Compress
from vlm_eff.core.errors import StateError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.report import CompressionReport
from vlm_eff.models.adapter import Adapter
from vlm_eff.models.call import Call
from vlm_eff.models.kv.all_heads import AllHeads
from vlm_eff.models.kv.book import Columns
from vlm_eff.models.kv.census import changes, stored, take_census
from vlm_eff.models.kv.layer import CompressedLayer
from vlm_eff.models.kv.places import Rotary
from vlm_eff.models.kv.view import CacheView, Entries, Traits, open_entries
from vlm_eff.models.kv.write import carry_out, unchanged
from vlm_eff.models.place import moved

Layers = dict[int, CompressedLayer]


class Compressor:
    """Asks the plugins of the cache and carries out what they answer.

    plugins: those of the cache, in the order in which they are asked; traits: how each layer attended when it last did;
    reports: what was compressed so far
    """

    def __init__(self, adapter: Adapter, plugins: tuple[Plugin, ...], layers: tuple[int, ...]) -> None:
        self._adapter = adapter
        self.plugins = plugins
        self._again = tuple(p for p in plugins if CacheSite("step") in p.sites)
        self._lead = layers[0] if layers else 0
        self.traits: dict[int, Traits] = {}
        self.reports: list[CompressionReport] = []

    def settle(self, call: Call, layers: Layers) -> None:
        """Compress layers of which everything stored is verified, before a decode step."""
        book = layers[self._lead].book
        record, prompt = book.columns, book.prompt
        assert record is not None
        if prompt is not None:
            for plugin in self.plugins:
                if CacheSite("prompt") in plugin.sites:
                    self._compress(call, plugin, CacheSite("prompt"), layers, record, prompt)
        elif self._again:
            for plugin in self._again:
                self._compress(call, plugin, CacheSite("step"), layers, record, call.past)
        if prompt is not None:
            for layer in layers.values():
                layer.book.settle()

    def _compress(
        self,
        call: Call,
        plugin: Plugin,
        site: CacheSite,
        layers: Layers,
        record: Columns,
        limit: int,
    ) -> None:
        """Ask one plugin, carry out what it answers, and note what that saved."""
        started = time.perf_counter()
        view = self.view(layers, record, limit, call.past)
        action = plugin.at(site, view)
        if not isinstance(action, Compress):
            return
        before = bytes_of(layers)
        # not at every decode step: it takes a look at all columns
        people = take_census(layers.values(), record) if site.when == "prompt" else {}
        counts = [stored(layer) for layer in layers.values()]
        if _carry_out(action, view, layers, limit):
            for layer in layers.values():
                layer.floor = max(layer.floor, limit)
            call.compressed = True
            after = [stored(layer) for layer in layers.values()]
            host = (time.perf_counter() - started) * 1e3
            self.reports.append(
                CompressionReport(
                    plugin.name, site.when, call.past, tuple(layers), tuple(counts), tuple(after),
                    before, bytes_of(layers), host,
                    changes(people, take_census(layers.values(), record)) if people else (),
                )
            )  # fmt: skip

    def rehearse(self, layers: Layers, plugins: tuple[Plugin, ...]) -> None:
        """Let plugins compress layers whose prompt is over, as they would before the first decode step; no report.

        Raises:
            StateError: layers that are not right behind a prompt.
        """
        book = layers[self._lead].book
        if book.columns is None or book.prompt is None:
            raise StateError(
                explain("a cache without a fresh prompt", "a cache right after a prompt", "Run the prompt")
            )
        for plugin in plugins:
            view = self.view(layers, book.columns, book.prompt, book.prompt)
            action = plugin.at(CacheSite("prompt"), view)
            if isinstance(action, Compress):
                _carry_out(action, view, layers, book.prompt)

    def view(self, layers: Layers, record: Columns, limit: int, length: int) -> CacheView:
        """What plugins are shown of layers: entries at positions below `limit`."""
        fresh = max(layer.slots.stored for layer in layers.values())
        entries = partial(self._entries, layers, record, limit)
        return CacheView(tuple(layers), length, fresh, entries, {}, lambda index: layers[index].open(limit))

    def _entries(self, layers: Layers, record: Columns, limit: int, index: int) -> Entries:
        record = moved(record, layers[index].keys.device)
        context = (self.traits.get(index), self.rotary(index, record))
        mine, ranks = open_entries(index, layers[index], record, limit, context), self._adapter.ranks
        return AllHeads(mine, ranks) if ranks.several else mine

    def rotary_of(self, index: int, layers: Layers) -> Rotary | None:
        """Rotary tables for the entries of one of the layers of a cache; None where nobody needs them."""
        return self.rotary(index, layers[self._lead].book.columns)

    def rotary(self, index: int, record: Columns | None) -> Rotary | None:
        """Rotary tables for the entries of a layer; None where nobody needs them."""
        if record is None or record.places is None:
            return None
        return Rotary(self._adapter, index, record.places)


def bytes_of(layers: Layers) -> int:
    """Bytes that the layers hold for their entries."""
    return sum(layer.bytes for layer in layers.values())


def _carry_out(action: Compress, view: CacheView, layers: Layers, limit: int) -> bool:
    """Write layer by layer, so that at most one layer is there twice; False when everything stays as it is."""
    changed = False
    for index in action.layers:
        entries = view.entries(index)
        decided = action.store(index)
        if not unchanged(decided, entries):
            carry_out(decided, entries, layers[index], limit)
            changed = True
        view.forget(index)
    return changed
