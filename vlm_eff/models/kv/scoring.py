"""Gradients of an answer with respect to everything a cache stores: the decoder's forward once more, with autograd.

Runs on a stand-in for the cache and on detached inputs, in a context of its own: neither the model, nor its cache, nor
anybody who watches either through hooks of transformers sees that it happened. Hooks that others put on layers do run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from vlm_eff.core.cache import CacheGradients
from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.core.plugin import Observation
from vlm_eff.kernels.compact import compact
from vlm_eff.models.adapter import Adapter
from vlm_eff.models.call import Call
from vlm_eff.models.kv.layer import CompressedLayer, Packed, compressed_layers
from vlm_eff.models.kv.places import Rotary
from vlm_eff.models.slots import Slots

# layer -> keys and values of what it stores, unpacked [B, Hkv, S, Dh]
Dense = Callable[[int], tuple[Tensor, Tensor]]
# by need and layer, of every column of the sequence
Gradients = dict[CacheGradients, dict[int, Tensor]]


@dataclass(frozen=True)
class Attended:
    """What the layers attended to in the scoring forward: keys, values and logical positions [B, Hkv, S], by layer."""

    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    positions: dict[int, Tensor]


@dataclass(frozen=True)
class Scoring:
    """What one call needs to be scored.

    layers: decoder layers that can be compressed; modality: [B, S] of every column up to the end of the call
    query:  [B] slot in the call of each row's last verified token
    """

    adapter: Adapter
    layers: tuple[int, ...]
    modality: Tensor
    query: Tensor

    def gradients(self, kwargs: dict[str, Any], dense: Dense, needs: tuple[CacheGradients, ...]) -> Gradients:
        """By need and layer the gradients of every column of the sequence [B, Hkv, S, 2 Dh], float32, keys first.

        kwargs: what the decoder is called with. Where the need asks for `cross`, one number more at the end. Zeros
        where a head stores nothing. Cost: a forward that keeps its activations, one backward a need, and for `cross`
        one more through each layer for each modality.

        Raises:
            CapabilityError: weights or a cache that autograd cannot work on.
        """
        with torch.inference_mode(False), torch.enable_grad():
            logits, seen = self._forward(kwargs, dense)
            made = {}
            for number, need in enumerate(needs, start=1):
                made[need] = self._of(need, logits, seen, more=number < len(needs))
        return made

    def _forward(self, kwargs: dict[str, Any], dense: Dense) -> tuple[Tensor, Attended]:
        cache = _stand_in(kwargs.get("past_key_values"), self.adapter, dense)
        sent = {name: _own(value) for name, value in kwargs.items() if name != "past_key_values"}
        sent["inputs_embeds"].requires_grad_()
        sent |= {"past_key_values": cache, "use_cache": True, "output_hidden_states": False, "output_attentions": False}
        # not called: its hooks, ours among them, are for the forward that follows
        output = self.adapter.decoder.forward(**sent)
        hidden = output[0] if isinstance(output, tuple) else output.last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)
        logits = self.adapter.logits(hidden[rows, _own(self.query).to(hidden.device)])
        keys, values, positions = {}, {}, {}
        for index in self.layers:
            layer = cache.layers[index]
            keys[index], values[index], positions[index] = layer.keys, layer.values, _positions(layer)
        return logits.float(), Attended(keys, values, positions)

    def _of(self, need: CacheGradients, logits: Tensor, seen: Attended, *, more: bool) -> dict[int, Tensor]:
        wanted = [*seen.keys.values(), *seen.values.values()]
        again = more or need.cross
        found = torch.autograd.grad(ANSWERS[need.of](logits), wanted, retain_graph=again, allow_unused=True)
        grads = [torch.zeros_like(x) if g is None else g for g, x in zip(found, wanted, strict=True)]
        keys = dict(zip(self.layers, grads, strict=False))
        values = dict(zip(self.layers, grads[len(self.layers) :], strict=True))
        made = {}
        for place, index in enumerate(self.layers):
            parts = [keys[index].float(), values[index].float()]
            if need.cross:
                later = self.layers[place + 1] if place + 1 < len(self.layers) else None
                parts.append(self._crossing(seen, index, later, keys))
            made[index] = _by_column(torch.cat(parts, -1), seen.positions[index], self.modality.shape[1])
        return made

    def _crossing(self, seen: Attended, index: int, later: int | None, grads: dict[int, Tensor]) -> Tensor:
        """Squared length of what reaches a key through the next layer's keys of other modalities [B, Hkv, S, 1]."""
        made = torch.zeros_like(seen.keys[index][..., :1], dtype=torch.float32)
        if later is None:
            return made
        own, next_ = (self._modality(seen.positions[layer]) for layer in (index, later))
        for kind in sorted(set(self.modality[self.modality >= 0].tolist())):
            sent = grads[later] * (next_ == kind)[..., None]
            (back,) = torch.autograd.grad(
                seen.keys[later], seen.keys[index], sent, retain_graph=True, allow_unused=True
            )
            if back is not None:
                other = (own != kind)[..., None]
                made += back.float().square().sum(-1, keepdim=True).masked_fill(~other, 0.0)
        return made

    def _modality(self, positions: Tensor) -> Tensor:
        wide = self.modality.to(positions.device)[:, None].expand(-1, positions.shape[1], -1)
        return wide.gather(2, positions.clamp(min=0).long())


def _greedy(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1).max(-1).values.sum()


# what is differentiated, of the logits [B, V]; rows of a batch do not meet in it
ANSWERS: dict[str, Callable[[Tensor], Tensor]] = {"greedy": _greedy, "logits": torch.sum}


class Scorer:
    """Scores prompts for the plugins that ask for gradients."""

    def __init__(
        self, adapter: Adapter, needs: tuple[Observation, ...], layers: tuple[int, ...], *, plain: bool
    ) -> None:
        """needs: of all plugins; plain: False where logits are changed inside attention, which is refused."""
        self._adapter, self._layers = adapter, layers
        self._needs = tuple(need for need in needs if isinstance(need, CacheGradients))
        if self._needs:
            _check(adapter, plain=plain)

    def wants(self, call: Call, kwargs: dict[str, Any]) -> bool:
        """True when the call is a prompt that will be cached, and gradients are asked for."""
        if not self._needs or (call.past and call.length - call.entry.unverified == 1):
            return False
        keeps = kwargs.get("use_cache")
        keeps = self._adapter.decoder.config.use_cache if keeps is None else keeps
        return bool(keeps) or kwargs.get("past_key_values") is not None

    def score(
        self, call: Call, kwargs: dict[str, Any], rotary: Callable[[int, dict[int, CompressedLayer]], Rotary | None]
    ) -> Gradients:
        """Gradients for a call of the decoder with `kwargs`; a chunk's replace those of the chunk before.

        rotary: tables of one of the layers of a cache, whose entries may have been stored before rotation
        """
        layers = compressed_layers(kwargs.get("past_key_values"))

        def dense(index: int) -> tuple[Tensor, Tensor]:
            layer = layers[index]
            return Packed(layer.segments, layer.keys, layer.values).dense(rotary(index, layers))

        scoring = Scoring(self._adapter, self._layers, call.passed.record.modality, call.query_slot())
        return scoring.gradients(kwargs, dense, self._needs)


def note_gradients(scored: Gradients, layers: dict[int, CompressedLayer]) -> None:
    """Give each layer the gradients of what it stores now that it is written."""
    for need, found in scored.items():
        for index, made in found.items():
            if index in layers:
                at = layers[index].positions().clamp(min=0).long()
                layers[index].book.gradients[need] = compact([made], at)[0]


def _check(adapter: Adapter, *, plain: bool) -> None:
    """Raise `CapabilityError` where an answer of the model cannot be differentiated."""
    if adapter.top.get_output_embeddings() is None:
        raise CapabilityError(
            explain(
                f"gradients of an answer from {type(adapter.top).__name__}, which has no language-model head",
                "the whole model",
                "Attach to the model for generation",
            )
        )
    if any(weight.is_inference() for weight in adapter.decoder.parameters()):
        raise CapabilityError(
            explain(
                "weights that were made under torch.inference_mode()",
                "weights that autograd can work with",
                "Load the model outside of inference_mode",
            )
        )
    if not plain:
        raise CapabilityError(
            explain(
                "gradients of an answer together with scaled logits, which the scoring forward does not know",
                "one of the two",
                "Attach one of the plugins",
            )
        )


def _stand_in(cache: Any, adapter: Adapter, dense: Dense) -> Any:
    """A cache with the same contents whose layers nobody else holds; what is stored are leaves."""
    if cache is None:
        return DynamicCache(config=adapter.decoder.config)
    if getattr(cache, "offloading", False):
        raise CapabilityError(
            explain(
                "gradients of an offloaded cache", "a cache on one device", "Leave offloading off, or choose snapkv"
            )
        )
    made = copy.copy(cache)
    made.layers = [copy.copy(layer) for layer in cache.layers]
    for index, layer in enumerate(made.layers):
        if not layer.get_seq_length():
            continue
        if isinstance(layer, CompressedLayer) and layer.compressed:
            layer.held, layer.weight = layer.positions(), layer.weights()
            layer.keys, layer.values = dense(index)
            layer.segments = ()
            rows, end = layer.held.shape[0], layer.slots.logical
            layer.slots = _empty(layer.slots, rows, end)
        layer.keys, layer.values = _own(layer.keys), _own(layer.values)
    return made


def _empty(slots: Slots, rows: int, end: int) -> Slots:
    index = slots.index.new_zeros(rows, 0)
    return Slots(index, index.bool(), end, end, ragged=False, shift=slots.shift)


def _own(value: Any) -> Any:
    """Tensors that autograd may keep and that no other graph reaches, in whatever they are nested."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value.detach()
    if isinstance(value, list | tuple):
        return type(value)(_own(one) for one in value)
    if isinstance(value, dict):
        return {name: _own(one) for name, one in value.items()}
    return value


def _positions(layer: Any) -> Tensor:
    if isinstance(layer, CompressedLayer):
        return layer.positions()
    batch, heads, count = layer.keys.shape[:3]
    return torch.arange(count, device=layer.keys.device).expand(batch, heads, -1)


def _by_column(made: Tensor, positions: Tensor, columns: int) -> Tensor:
    """Bring [B, Hkv, S, C] of stored entries to the columns of the sequence; zeros where nothing is stored."""
    at = positions.long().where(positions >= 0, columns)[..., None].expand(made.shape)
    grid = made.new_zeros(*made.shape[:2], columns + 1, made.shape[3])
    return grid.scatter(2, at, made)[:, :, :columns]
