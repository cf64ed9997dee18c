"""What compressing a cache does to the attention of an answer, measured without running the model again.

The model runs once with a full cache, under a handle that only observes. What its layers stored when the prompt was
over is compressed as each policy would compress it, and the queries of the answer attend to both.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vlm_eff.core.cache import CacheRows, CacheSite
from vlm_eff.core.errors import ConfigError, StateError, explain
from vlm_eff.core.plugin import BindContext, Observation, Plugin
from vlm_eff.core.resources import Resource, check_conflicts
from vlm_eff.kernels.grouped_attention import attend_groups
from vlm_eff.models.attach import attach
from vlm_eff.models.kv.book import Asked, Columns
from vlm_eff.models.kv.compress import bytes_of
from vlm_eff.models.kv.layer import CompressedLayer, Packed, compressed_layers
from vlm_eff.models.kv.runtime import CacheRuntime
from vlm_eff.models.kv.view import CacheView, looks_at

Policy = tuple[Plugin, ...]


@dataclass(frozen=True)
class LayerOutput:
    """Attention of the answer's queries in one layer.

    full, compressed: [B, H, R, Dh] outputs over everything, and over what a policy keeps
    entries: of the prompt, that are stored, mean over rows and key heads; bytes: of everything stored for it
    """

    full: Tensor
    compressed: Tensor
    entries: float
    bytes: int


@dataclass(frozen=True)
class _Watch(Plugin):
    """Changes nothing; asks for everything that some policies need, and keeps the layers as a prompt left them."""

    policies: tuple[Policy, ...]
    rows: CacheRows
    layers: dict[int, CompressedLayer] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "kv_meter"

    @property
    def sites(self) -> tuple[CacheSite, ...]:
        return (CacheSite("prompt"),)

    @property
    def needs(self) -> tuple[Observation, ...]:
        asked = (need for policy in self.policies for plugin in policy for need in plugin.needs)
        return tuple(dict.fromkeys((self.rows, *asked)))

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset()

    def bind(self, context: BindContext) -> _Watch:
        bound = tuple(tuple(plugin.bind(context) for plugin in policy) for policy in self.policies)
        for policy in bound:
            check_conflicts(policy)
        return replace(self, policies=bound)

    def at(self, site: CacheSite, view: CacheView) -> None:
        self.layers.update({index: copied(view.entries(index)._cache) for index in view.layers})


@dataclass(frozen=True)
class Watched:
    """One answer with a full cache, ready for policies to be measured on it.

    before: the layers of the cache when the prompt was over; after: when the answer was
    tokens: [B, steps] whose queries are used; policies: as they were given, bound to the model
    """

    tokens: Tensor
    policies: tuple[Policy, ...]
    before: dict[int, CompressedLayer]
    after: dict[int, CompressedLayer]
    _runtime: CacheRuntime
    _rows: CacheRows

    @property
    def bytes(self) -> int:
        """What the full cache held when the prompt was over."""
        return bytes_of(self.before)

    @property
    def prompt(self) -> Tensor:
        """Tokens of each row of the prompt [B], padding left out."""
        return self._columns(self.before).real.sum(1)

    @property
    def modality(self) -> Tensor:
        """What each column of the prompt is [B, S] int8, in the words of `core/cache.py`."""
        return self._columns(self.before).modality

    def compress(self, policy: Policy) -> dict[int, CompressedLayer]:
        """Copies of the layers, compressed."""
        layers = {index: copied(layer) for index, layer in self.before.items()}
        self._runtime.compressor.rehearse(layers, policy)
        return layers

    @torch.no_grad()
    def output(self, index: int, compressed: CompressedLayer) -> LayerOutput:
        """Attention of the answer over a full layer and over a compressed copy of it."""
        before, after = self.before[index], self.after[index]
        rows, past = after.book.asked[self._rows], before.get_seq_length()
        full = self._attend(index, rows, (after.keys, after.values, after.positions(), None))
        packed = Packed(compressed.segments, compressed.keys, compressed.values)
        key, value = packed.dense(self._runtime.compressor.rotary_of(index, self.before))
        stored, weight = compressed.positions(), compressed.weights()
        new = after.positions()[:, :, past:].expand(-1, stored.shape[1], -1)
        if weight is not None:
            weight = torch.nn.functional.pad(weight, (0, new.shape[2]), value=1.0)
        key = torch.cat([key, after.keys[:, :, past:]], 2)
        value = torch.cat([value, after.values[:, :, past:]], 2)
        made = self._attend(index, rows, (key, value, torch.cat([stored, new], 2), weight))
        real = self._real(stored)
        return LayerOutput(full, made, float(real.sum()) / (real.shape[0] * real.shape[1]), compressed.bytes)

    def _real(self, position: Tensor) -> Tensor:
        """Which stored entries are neither fillers nor padding [B, Hkv, S]."""
        columns = self._columns(self.before)
        at = position.clamp(min=0).long()
        return (position >= 0) & columns.real[:, None].expand(-1, position.shape[1], -1).gather(2, at)

    def _columns(self, layers: dict[int, CompressedLayer]) -> Columns:
        columns = layers[self._runtime.layers[0]].book.columns
        assert columns is not None
        return columns

    def _attend(self, index: int, rows: Asked, stored: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> Tensor:
        """Output [B, H, R, Dh] over keys, values, their positions and what each stands for."""
        key, value, position, weight = stored
        position = position.expand(key.shape[:3])
        traits = self._runtime.compressor.traits[index]
        looks = looks_at(rows, position, self._columns(self.after).real)
        query = rows.query if rows.query.dtype == torch.float64 else rows.query.float()
        bias = torch.zeros(looks.shape, dtype=query.dtype, device=query.device)
        if weight is not None:
            bias = bias + weight.clamp(min=1).log().to(query.dtype)[:, :, None]
        bias = bias.masked_fill(~looks, float("-inf"))
        spread = query.shape[1] // bias.shape[1]
        groups = [(key, value, bias.repeat_interleave(spread, 1))]
        return attend_groups(query, groups, traits.scaling, traits.softcap)[0]


def copied(layer: CompressedLayer) -> CompressedLayer:
    """A copy that can be compressed or appended to without changing the layer; tensors are shared, none is written."""
    twin = copy.copy(layer)
    book = layer.book
    twin.book = replace(book, asked=dict(book.asked), sums=dict(book.sums), gradients=dict(book.gradients))
    return twin


def copied_cache(cache: Any) -> Any:
    """A copy of a cache that can be compressed and appended to without changing it; tensors are shared."""
    twin = copy.copy(cache)
    twin.layers = [
        copied(layer) if isinstance(layer, CompressedLayer) else copy.deepcopy(layer) for layer in cache.layers
    ]
    return twin


def watch_answer(model: Any, inputs: Any, policies: Sequence[Policy], steps: int) -> Watched:
    """Answer a prompt greedily with a full cache and keep what the policies need, and the queries of `steps` tokens.

    An answer that would be shorter is made to go on, so that there always are `steps` queries.

    Raises:
        ConfigError: a policy that acts anywhere but on the cache, or two that change the same of it.
        CapabilityError: a model whose cache cannot be compressed.
    """
    for policy in policies:
        _check_policy(policy)
    rows = CacheRows("last", count=steps, steps=True)
    with attach(model, _Watch(tuple(policies), rows)) as handle, torch.no_grad():
        made = model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=steps + 1,
            min_new_tokens=steps + 1,
            use_cache=True,
            return_dict_in_generate=True,
        )
        watch = handle.plugins[0]
        assert isinstance(watch, _Watch)
        if not watch.layers:
            raise StateError(
                explain("a model that made no decode step", "a model that generates with a cache", "Leave its cache on")
            )
        after = compressed_layers(made.past_key_values)
        runtime: CacheRuntime = handle._runtime.cache  # type: ignore[attr-defined]
    return Watched(made.sequences[:, -steps - 1 : -1], watch.policies, watch.layers, after, runtime, rows)


def _check_policy(policy: Policy) -> None:
    if not policy:
        raise ConfigError(explain("a label without a plugin", "one plugin of the cache or more", "Give it a plugin"))
    for plugin in policy:
        if not isinstance(plugin, Plugin):
            raise ConfigError(explain(f"{plugin!r}", "plugins, such as snapkv()", "Call the method function"))
        if not plugin.sites or not all(isinstance(site, CacheSite) for site in plugin.sites):
            raise ConfigError(
                explain(
                    f"{plugin.name}, which acts elsewhere than on the cache",
                    "plugins of the KV cache",
                    "Measure what visual tokens cost with `vlm-eff run --compare`",
                )
            )
