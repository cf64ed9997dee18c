"""What happens in one forward pass with plugins attached. The only code that hooks, gathers and writes.

Core model, before      note ids, mask, labels
Decoder, before         find the visual tokens; refuse what cannot be carried
Layer, before           ask the plugins of this layer; then bring hidden states, rotary tables, mask and cache to the
                        survivors. Everything Hugging Face sees outside stays at full length.
Layer, inside           ask the plugins that act inside its attention, which then is computed among fewer tokens, or
                        fewer pairs of them
Layer, after            DeepStack families: back to full length while features are still added
Decoder, after          back to full length; note what was stored
"""

from __future__ import annotations

import inspect
import time
from collections import defaultdict
from contextvars import Context, ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from vlm_eff.core.action import Action, Attend, AttendBlocks, Bias, Merge
from vlm_eff.core.handle import Handle, Undo
from vlm_eff.core.plugin import AttentionSite, Plugin, Site
from vlm_eff.core.report import Stats, VisualTokens
from vlm_eff.models import refusals, seams
from vlm_eff.models.adapter import Adapter
from vlm_eff.models.apply import apply_action, check_labels, renumber
from vlm_eff.models.attend import among
from vlm_eff.models.attend_blocks import by_blocks
from vlm_eff.models.cache_layer import guard, is_logical, stored_layer
from vlm_eff.models.call import Call, Entry, find_spans, has_placeholders, modality_of
from vlm_eff.models.kv.layer import CompressedLayer
from vlm_eff.models.kv.runtime import CacheRuntime
from vlm_eff.models.layer_call import LayerCall
from vlm_eff.models.ledger import Ledger
from vlm_eff.models.observer import Input, Observer
from vlm_eff.models.place import execution_device, moved
from vlm_eff.models.registers import return_guests
from vlm_eff.models.revive import Reviver
from vlm_eff.models.rows import PromptRows
from vlm_eff.models.soft import add_log_weight
from vlm_eff.models.tap import Instead
from vlm_eff.models.translate import Translator
from vlm_eff.models.view import View
from vlm_eff.models.vit.attach import tower_runtime

# one for all runtimes, because a context variable lives as long as the process; every call knows whose it is
_ENTRY: ContextVar[Entry | None] = ContextVar("vlm_eff_entry", default=None)
_CALL: ContextVar[Call | None] = ContextVar("vlm_eff_call", default=None)


class Runtime:
    """Carries out plugins on one model; state of a call is in a context variable, of a sequence in the cache."""

    def __init__(self, adapter: Adapter, plugins: tuple[Plugin, ...], weights: dict[str, Any] | None = None) -> None:
        self.adapter = adapter
        self.plugins = plugins
        self.weights = weights or {}
        self.penalties: list[Tensor] = []
        self.active = True
        self.handle: Handle | None = None
        self.ledger = Ledger(adapter, plugins)
        self._at: dict[int, list[Plugin]] = defaultdict(list)
        self._inside: dict[int, list[Plugin]] = defaultdict(list)
        for plugin in plugins:
            for site in plugin.sites:
                if isinstance(site, Site):
                    (self._inside if isinstance(site, AttentionSite) else self._at)[site.layer].append(plugin)
        self.observer = Observer(adapter, plugins)
        self.towers = tower_runtime(adapter, plugins, self.observer.told)
        self.reviver = Reviver(adapter, plugins, self.ledger)
        self.translator = Translator(adapter, self.reviver)
        self.cache = CacheRuntime(adapter, plugins)
        self._grids: Tensor | None = None

    # ---------------------------------------------------------------- installation

    def install(self, undo: Undo) -> None:
        """Put the hooks on; each pushes how to take it off."""
        adapter = self.adapter
        if adapter.top is not adapter.core:
            seams.before(adapter.top, self._top_before, undo)
        if adapter.family.frames_apart:
            seams.before(adapter.tower, self._tower_before, undo)
        seams.before(adapter.core, self._core_before, undo)
        seams.before(adapter.decoder, self._decoder_before, undo)
        seams.after(adapter.decoder, self._decoder_after, undo)
        self.towers.install(lambda: self.active, undo)
        hooked = [*self._at, *self._inside, *self.observer.layers, *self.observer.inputs, *self.cache.hooked]
        for index in range(min(hooked, default=adapter.num_layers), adapter.num_layers):
            layer = adapter.layers[index]
            seams.before(layer, self._layer_hook(index), undo)
            if adapter.family.restores:
                seams.after(layer, self._restore_hook(index), undo)
        self.observer.install(self._call, self._attend, undo)
        self.cache.install(self._call, undo)

    def _layer_hook(self, index: int) -> Any:
        return lambda module, args, kwargs: self._layer_before(index, args, kwargs)

    def _restore_hook(self, index: int) -> Any:
        return lambda module, args, kwargs, output: self._layer_after(index, output)

    # ---------------------------------------------------------------- what the handle asks

    def stats(self) -> Stats:
        made = self.ledger.stats()
        made.towers = self.towers.ledger.reports()
        made.compressions = list(self.cache.compressor.reports)
        return made

    def reset(self) -> None:
        self.ledger.reset()
        self.towers.ledger.reset()
        self.cache.compressor.reports.clear()

    def survivors(self, layer: int) -> list[Tensor]:
        return self.ledger.survivors(layer)

    def attended(self, layer: int) -> list[Tensor]:
        return self.ledger.attended(layer)

    def visual(self, layer: int) -> list[VisualTokens]:
        return self.ledger.visual(layer)

    def kv_positions(self, layer: int) -> Tensor:
        return self.ledger.kv_positions(layer)

    def kv_modalities(self, layer: int) -> Tensor:
        return self.cache.modalities(self.ledger.kv_positions(layer))

    def kv_contents(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.cache.contents(layer)

    def tower_groups(self, block: int) -> list[tuple[Tensor, Tensor]]:
        return self.towers.ledger.groups(block)

    # ---------------------------------------------------------------- entering

    def _tower_before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # videos are encoded after images, in `generate` even before the core model is called
        self._grids = kwargs.get("grid_thw") if self.active else None

    def _entry(self) -> Entry | None:
        entry = _ENTRY.get()
        return entry if entry is not None and entry.owner is self else None

    def _call(self) -> Call | None:
        call = _CALL.get()
        return call if call is not None and call.entry.owner is self else None

    def _top_before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # a failed forward may have left its state behind: every outermost call begins anew
        _CALL.set(None)
        # assisted decoding asks for the logits of its candidates, and always brings a cache
        keep = kwargs.get("logits_to_keep")
        assisted = isinstance(keep, int) and keep > 1 and kwargs.get("past_key_values") is not None
        unverified = keep - 1 if assisted else 0
        _ENTRY.set(Entry(self, labels=kwargs.get("labels"), unverified=unverified) if self.active else None)

    def _core_before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _CALL.set(None)
        entry = self._entry() or Entry(self)
        _ENTRY.set(None)
        if not self.active:
            return
        refusals.refuse_training(module, self.plugins)
        if args:
            kwargs = {**inspect.signature(module.forward).bind_partial(*args).arguments, **kwargs}
        entry.ids, entry.embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        entry.mask = kwargs.get("attention_mask")
        encoded = {name: value for name, value in (kwargs.get("mm_encoder_outputs") or {}).items() if value is not None}
        entry.split = refusals.is_split(encoded)
        if entry.split and len(self.cache.plugins) < len(self.plugins):
            refusals.refuse_split_prompt()
        pixels = any(kwargs.get(name) is not None for name in ("pixel_values", "pixel_values_videos"))
        entry.pictured = pixels or bool(encoded) or entry.ids is None
        if entry.ids is not None and entry.ids.shape[1] > 1:
            refusals.refuse_missing_placeholders(entry.pictured, has_placeholders(self.adapter, entry.ids))
        _ENTRY.set(entry)

    def _decoder_before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _CALL.set(None)
        entry, embeds = self._entry(), kwargs.get("inputs_embeds")
        _ENTRY.set(None)
        if not self.active or embeds is None:
            return
        self.ledger.begin()
        self.penalties.clear()
        cache = kwargs.get("past_key_values")
        refusals.refuse_cache(cache)
        rows, length = embeds.shape[:2]
        past = int(cache.get_seq_length()) if cache is not None else 0
        call = Call(entry or Entry(self), rows, length, past, embeds.device)
        deepstack = kwargs.get("deepstack_visual_embeds")
        call.restore_until = len(deepstack) if deepstack is not None else 0
        if entry is not None and entry.pictured and (length > 1 or entry.split):
            entry.grids, self._grids = self._grids, None
            if self.cache.active:
                call.modality = modality_of(self.adapter, entry, embeds)
        if entry is not None and length > 1 and entry.pictured and not entry.split:
            call.spans = find_spans(self.adapter, entry, embeds, kwargs.get("position_ids"))
        if call.spans is not None:
            call.original = call.spans
            self.observer.arrive(call, embeds)
            call.last_visual = int(call.spans.slot.max())
            if call.last_visual >= length - call.entry.unverified:
                # candidates never reach the image: all these logits were asked for, and nothing is unverified
                call.entry.unverified = 0
        self.reviver.begin(call, cache)
        if self.cache.active:
            self.cache.begin(call, cache, kwargs.get("position_ids"))
            if self.cache.scorer.wants(call, kwargs):
                # an empty context: nothing of this forward, nor what transformers collects of it, is there
                Context().run(self._score, call, kwargs)
        _CALL.set(call)

    def _score(self, call: Call, kwargs: dict[str, Any]) -> None:
        # a call of which nothing is asked: masks are brought to what the cache stores, and that is all
        side = Call(call.entry, call.rows, call.length, call.past, call.device)
        _CALL.set(side)
        call.passed.scored = self.cache.scorer.score(call, kwargs, self.cache.compressor.rotary_of)

    # ---------------------------------------------------------------- inside

    def _layer_before(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self._call()
        if call is None:
            return None
        device = execution_device(self.adapter.layers[index])
        if device is not None:
            # accelerate would bring them there, but only behind this hook
            args = moved(args, device)
            kwargs = {name: one if name == "past_key_values" else moved(one, device) for name, one in kwargs.items()}
            call.follow(args[0].device)
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        self.cache.enter(call, index, cache, mask)
        if call.step and not call.later and self.translator.passes(cache, index, mask):
            return None
        now = LayerCall(args, dict(kwargs))
        layer_cache = stored_layer(now.cache, index)
        hidden, changed = now.hidden, call.survivors is not None or call.log_weight is not None
        if call.full and call.survivors is not None:
            hidden, call.full = return_guests(call.survivors, hidden, call.aside), False
        if call.spans is not None:
            if index in self.observer.inputs:
                call.inputs[index] = (hidden, call.present())
            for plugin in self._at.get(index, ()):
                action = self._ask(call, index, plugin, now, hidden)
                if action is not None:
                    hidden = self._act(call, index, plugin, action, now, hidden)
                    changed = True
                elif changed and now.cache is not None and self.reviver.serves(plugin):
                    self.reviver.shed(call, index, now, hidden, call.present(), call.spans)
        if call.later:
            hidden = self.reviver.enter(call, index, now)
        if call.length > 1 or call.extra is not None:
            call.sequence[index] = (hidden.shape[1], self.translator.stored(call, now.cache, index))
        if call.survivors is not None:
            call.maps[index] = call.survivors
        if index in self._inside and call.spans is not None:
            call.inside = lambda: self._view(call, index, now, hidden)
            call.compact = isinstance(layer_cache, CompressedLayer) and layer_cache.compressed
        if not changed and not is_logical(layer_cache):
            call.ropes[index] = now.rope
            return None
        now.check(call.length)
        self.translator.translate(call, index, now, hidden)
        call.ropes[index] = now.rope
        if call.survivors is not None:
            now.gather_positions(call.survivors, keep="flash" not in self.adapter.decoder.config._attn_implementation)
        self.translator.stamp(call, now.cache, index)
        return (hidden,), now.kwargs

    def _ask(self, call: Call, index: int, plugin: Plugin, now: LayerCall, hidden: Tensor) -> Action | None:
        started = time.perf_counter()
        action = plugin.at(Site(index), self._view(call, index, now, hidden, plugin))
        call.deciding += time.perf_counter() - started
        return action

    def _act(self, call: Call, index: int, plugin: Plugin, action: Any, now: LayerCall, hidden: Tensor) -> Tensor:
        assert call.spans is not None and call.original is not None
        before, candidates, whole = call.present(), call.spans, hidden
        if isinstance(action, Bias):
            call.log_weight = add_log_weight(action, call.spans, call.log_weight, call.length)
            self.penalties += [] if action.penalty is None else [action.penalty]
            return hidden
        if isinstance(action, Merge):
            call.merged.append((index, candidates.slot.gather(1, action.index), action.weight * action.valid))
        hidden, call.survivors, call.spans = apply_action(action, hidden, before, candidates, self.adapter.ordered)
        if self.reviver.serves(plugin) and now.cache is not None:
            self.reviver.shed(call, index, now, whole, before, candidates)
        check_labels(call.entry.labels, call.original.mask(call.length), call.survivors)
        if plugin.positions == "reindexed":
            past = self.translator.slots(call, now.cache, index).shift
            call.reindexed, call.shift = renumber(call, now.kwargs.get("position_ids"), call.survivors, past)
        self.ledger.stage(call, plugin.name, index, candidates.count)
        return hidden

    def _attend(self, call: Call, index: int) -> Instead | None:
        """Ask the plugins that act inside the attention of a layer; resources leave one of them."""
        assert call.inside is not None
        for plugin in self._inside[index]:
            started = time.perf_counter()
            action = plugin.at(AttentionSite(index), call.inside())
            call.deciding += time.perf_counter() - started
            if isinstance(action, Attend):
                return among(call, index, action)
            if isinstance(action, AttendBlocks) and not call.compact:
                return by_blocks(self.adapter, call, index, action)
        return None

    def _layer_after(self, index: int, output: Any) -> Any:
        call = self._call()
        if call is None or call.survivors is None or index >= call.restore_until:
            return None
        call.full, call.aside = True, output if call.survivors.registers is not None else None
        return call.survivors.scatter(output)

    def _view(self, call: Call, index: int, now: LayerCall, hidden: Tensor, plugin: Plugin | None = None) -> View:
        assert call.spans is not None and call.original is not None
        return View(
            layer=index,
            spans=call.spans,
            hidden=hidden,
            physical=call.present().physical(call.spans.slot),
            original=call.original.count,
            image_original=lambda: call.shared("images", (), call.per_image),
            prompt_hash=lambda: call.shared("hash", (), call.prompt_hash),
            observed=self.observer.at(call, index, lambda: self._input(call, index, now, hidden)),
            survivors=call.present(),
            prompt=PromptRows(self.adapter, call),
            projects=index == 0 and self.adapter.projector is not None,
            weights=self._weights(plugin, hidden.device),
            training=self.adapter.core.training,
            share=None if call.log_weight is None else call.log_weight.exp().gather(1, call.spans.slot),
        )

    def _weights(self, plugin: Plugin | None, device: torch.device) -> Any:
        """What a plugin has learned, where it is needed now."""
        made = None if plugin is None else self.weights.get(plugin.name)
        return None if made is None else made.to(device)

    def _input(self, call: Call, index: int, now: LayerCall, hidden: Tensor) -> Input:
        side = LayerCall((hidden,), dict(now.kwargs))
        if call.survivors is not None or is_logical(stored_layer(now.cache, index)):
            self.translator.translate(call, index, side, hidden)
        cached, slots = stored_layer(now.cache, index), self.translator.slots(call, now.cache, index)
        if isinstance(cached, CompressedLayer) and cached.compressed:
            return Input(hidden, side.rope, side.mask, self.cache.dense_keys(call, index))
        past = cached.keys[:, :, -slots.stored :] if cached is not None and slots.stored else None
        return Input(hidden, side.rope, side.mask, past)

    # ---------------------------------------------------------------- leaving

    def _decoder_after(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        call = self._call()
        if call is None:
            return None
        _CALL.set(None)
        self.cache.leave(call)
        cache = kwargs.get("past_key_values")
        if cache is None and not isinstance(output, tuple):
            cache = output.get("past_key_values")
        if call.revived:
            output = self.reviver.leave(call, cache, output)
        self.ledger.close(call, cache)
        if call.survivors is not None and cache is not None:
            for layer in cache.layers:
                guard(layer, call.past + call.last_visual + 1)
        if call.survivors is None or call.full:
            return output if call.revived else None
        call.follow((output[0] if isinstance(output, tuple) else output.last_hidden_state).device)
        if isinstance(output, tuple):
            return (call.survivors.scatter(output[0]), *output[1:])
        output.last_hidden_state = call.survivors.scatter(output.last_hidden_state)
        if output.get("hidden_states") is not None:
            output.hidden_states = call.full_length(output.hidden_states)
        return output
