"""Bringing dropped tokens back in a later call: from the side store of a stage through the layers they miss.

A later call is a decode step, or a turn without images. At the input of a stage's layer the plugin may choose tokens
that the layer before attended to and this one has not got. They join the sequence of the call in front of its own
tokens, with the hidden state they had when they were dropped, and their keys and values enter the cache behind what it
holds; the slots of the cache say which is where. At the next stage those that are not chosen again leave, into that
stage's store.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.core.plugin import Plugin, QueryRow, Site
from vlm_eff.models.adapter import Adapter
from vlm_eff.models.cache_layer import guard, is_logical
from vlm_eff.models.call import Call
from vlm_eff.models.layer_call import LayerCall
from vlm_eff.models.ledger import Ledger
from vlm_eff.models.masks import map_mask
from vlm_eff.models.observe import row_logits, tapped_source
from vlm_eff.models.ranks import Ranks
from vlm_eff.models.side_store import SideStore, Tokens, column_of
from vlm_eff.models.slots import Slots
from vlm_eff.models.token_map import gather_slots
from vlm_eff.models.visual import VisualSpans


@dataclass(frozen=True)
class LaterView:
    """What a plugin sees at a stage of a later call; columns are the visual candidates of all images so far.

    available: [B, V] the layer before has the candidate, so that it can be here
    present:   [B, V] this layer has it too
    entered:   [B] candidates that entered the language model
    new:       tokens of this call
    """

    layer: int
    available: Tensor
    present: Tensor
    entered: Tensor
    new: int
    _call: Call
    _columns: Tensor
    _attention: Any
    _ranks: Ranks

    def query_logits(self, wanted: QueryRow) -> tuple[Tensor, Tensor]:
        """Attention logits of the call's last token [B, H, S] in the layer before, and the candidates' columns [B, V].

        Columns of candidates that are not available mean nothing.
        """
        source = tapped_source(self._call.tapped[wanted.layer], self._attention, rope=wanted.rope)
        extra = source.key.shape[2] - source.past - self._call.length
        logits = row_logits(source, self._call.query_slot()[:, None] + extra)[:, :, 0]
        return self._ranks.all_queries(logits), self._columns.clamp(min=0)


class Reviver:
    """Carries out `Plugin.again`; the running tokens of a call are on the call, everything else in the cache."""

    def __init__(self, adapter: Adapter, plugins: tuple[Plugin, ...], ledger: Ledger) -> None:
        self._adapter = adapter
        self._ledger = ledger
        self._at = {site.layer: plugin for plugin in plugins if plugin.revives for site in plugin.sites}

    def serves(self, plugin: Plugin) -> bool:
        """True for a plugin whose dropped tokens are kept."""
        return plugin in self._at.values()

    def begin(self, call: Call, cache: Any) -> None:
        """Find out whether this call may bring tokens back, and refuse what cannot be done right."""
        if not self._at or cache is None:
            return
        call.later = call.spans is None and any(_store(layer) is not None for layer in cache.layers)
        if call.later and call.entry.unverified:
            raise CapabilityError(
                explain(
                    "assisted decoding, or several logits at once, with a method that brings tokens back",
                    "one query a call: its attention decides what comes back",
                    'Leave the assistant out, or use revive="never"',
                )
            )
        if call.later and call.entry.mask is not None and call.entry.mask.dim() != 2:
            raise CapabilityError(
                explain("a ready-made attention mask", "a mask of padding [B, S], or none", "Give the padding mask")
            )

    def shed(self, call: Call, index: int, now: LayerCall, hidden: Tensor, before: Any, spans: VisualSpans) -> None:
        """Note what was dropped at `index`, nothing too: `hidden`, `before`, `spans` are as they were before."""
        assert call.original is not None and call.spans is not None and now.rope is not None
        if index < call.restore_until:
            raise CapabilityError(
                explain(
                    f"tokens dropped at layer {index}, with image features added up to layer {call.restore_until - 1}",
                    f"revival from stages at layer {call.restore_until} and later",
                    'Choose later layers, or revive="never"',
                )
            )
        gone = spans.mask(call.length) & ~call.spans.mask(call.length)
        place = torch.arange(call.length, device=call.device).expand(call.rows, -1)
        cos, sin = (table.expand(call.rows, -1, -1) for table in now.rope)
        full = Tokens(before.scatter(hidden), place + call.past, cos, sin, torch.ones_like(gone))
        call.shed[index] = SideStore(full.only(gone), call.original.slot + call.past, call.original.valid)

    def enter(self, call: Call, index: int, now: LayerCall) -> Tensor:
        """Hidden states of a later call at the input of a layer: what runs along, and the call's own tokens."""
        layer = now.cache.layers[index] if index < len(now.cache.layers) else None
        store, plugin = _store(layer), self._at.get(index)
        if store is None or plugin is None:
            return now.hidden
        hidden, width = now.hidden, call.extra.width if call.extra is not None else 0
        present = _columns(layer.slots, store, call) >= 0
        columns = self._columns_before(call, index, now.cache, store)
        view = LaterView(
            index,
            available=(columns >= 0) & store.valid,
            present=present & store.valid,
            entered=store.valid.sum(1),
            new=call.length,
            _call=call,
            _columns=columns,
            _attention=self._adapter.layers[index - 1].self_attn,
            _ranks=self._adapter.ranks,
        )
        started = time.perf_counter()
        revive = plugin.again(Site(index), view)
        call.deciding += time.perf_counter() - started
        counts = [0] * call.rows if revive is None else revive.chosen.sum(1).tolist()
        self._ledger.revived(plugin.name, index, counts)
        own = hidden[:, width:]
        if not width and not any(counts):
            return own
        pool = store.tokens
        if call.extra is not None:
            pool = pool.join(_with_hidden(call.extra, hidden[:, :width]))
        # one column more, for the candidates that are not chosen
        chosen = pool.valid.new_zeros(call.rows, pool.width + 1)
        if revive is not None:
            at = column_of(pool.position, pool.valid, store.position, layer.slots.logical + call.length)
            target = torch.where(revive.chosen, at, pool.width)
            chosen.scatter_(1, target, True)
        chosen = chosen[:, :-1]
        layer.store = store.holding(pool.only(~chosen))
        call.extra, call.ragged = (pool.only(chosen), min(counts) != max(counts)) if any(counts) else (None, False)
        call.revived |= any(counts)
        return own if call.extra is None else torch.cat([call.extra.hidden, own], 1)

    def _columns_before(self, call: Call, index: int, cache: Any, store: SideStore) -> Tensor:
        """Where each candidate stands among the keys of the layer before, -1 where it is not there [B, V]."""
        layer = cache.layers[index - 1]
        return _columns(layer.slots, store, call) if is_logical(layer) else store.position

    def translate(self, call: Call, now: LayerCall, slots: Slots) -> None:
        """Bring rotary tables and mask of a layer call to the running tokens and to what the layer's cache stores."""
        extra = call.extra
        assert extra is not None
        if now.rope is not None:
            rope = now.rope
            made = call.shared("revived rope", (rope[0], extra), lambda: _rope(extra, rope))
            now.kwargs["position_embeddings"] = made
        given = now.mask
        now.kwargs["attention_mask"] = call.shared(
            "revived mask",
            (given, slots.index, slots.start, slots.stop, extra),
            lambda: _mask(call, extra, slots.join(extra.position, extra.valid, call.length, ragged=True), given),
        )
        call.masks_built += 1
        now.kwargs["position_ids"] = None

    def ticket(self, call: Call) -> Callable[[Slots], Slots]:
        """What the next update of a layer brings in a call that drops nothing."""
        extra, ragged = call.extra, call.ragged
        if extra is None:
            return lambda old: old.grow(call.length)
        return lambda old: call.shared(
            "slots",
            (old.index if old.index.numel() else 0, old.start, old.stop, extra),
            lambda: old.join(extra.position, extra.valid, call.length, ragged=ragged),
        )

    def leave(self, call: Call, cache: Any, output: Any) -> Any:
        """The decoder's output with the call's own tokens alone; no layer may be cropped to before the call any more.

        A crop that reached further would leave what came back where some layers have it and others do not.
        """
        for layer in cache.layers:
            if is_logical(layer):
                old = layer.slots
                key = (old.index if old.index.numel() else 0, old.start, old.stop)
                layer.slots = call.shared("sealed", key, partial(old.seal, call.past))
            else:
                guard(layer, call.past)
        if isinstance(output, tuple):
            return (output[0][:, -call.length :], *output[1:])
        output.last_hidden_state = output.last_hidden_state[:, -call.length :]
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(states[:, -call.length :] for states in output.hidden_states)
        return output


def _store(layer: Any) -> SideStore | None:
    return getattr(layer, "store", None)


def _columns(slots: Slots, store: SideStore, call: Call) -> Tensor:
    """Where each candidate stands among what `slots` name, -1 where it is not there [B, V]."""
    # the layer before may lie on another device
    index, valid = (one.to(store.position.device) for one in slots.positions())
    return column_of(index, valid, store.position, call.past + call.length)


def _rope(extra: Tokens, own: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Rotary tables of the running tokens and of the call's own [B, R + S, Dr]."""
    rows = len(extra.position)
    cos, sin = (torch.cat([t, o.expand(rows, -1, -1)], 1) for t, o in zip((extra.cos, extra.sin), own, strict=True))
    return cos, sin


def _with_hidden(tokens: Tokens, hidden: Tensor) -> Tokens:
    return Tokens(hidden, tokens.position, tokens.cos, tokens.sin, tokens.valid)


def _mask(call: Call, extra: Tokens, slots: Slots, given: Any) -> Tensor:
    """The mask of the running and the new tokens [B, 1 or H, R + S, K] over the keys that `slots` name."""
    keys, valid = slots.positions()
    own = map_mask(given, keys, valid, None, slots.stop, call.length)
    assert own is not None
    seen = (keys[:, None, :] <= extra.position[:, :, None]) & valid[:, None, :]
    padding = call.entry.mask
    if padding is not None:
        seen = seen & gather_slots(padding.to(keys.device), keys, 1).bool()[:, None, :]
    # a filler sees itself, so that its softmax is defined; nobody reads the result
    first = keys.shape[1] - call.length - extra.width
    place = torch.arange(extra.width, device=keys.device)
    seen[:, place, first + place] = True
    made = seen[:, None].expand(-1, own.shape[1], -1, -1)
    if own.dtype != torch.bool:
        made = torch.zeros(made.shape, dtype=own.dtype, device=own.device).masked_fill(
            ~made, torch.finfo(own.dtype).min
        )
    return torch.cat([made, own], 2)
