"""FLOPs of a decode step, from what the cache stored then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlm_eff.models.adapter import Adapter
from vlm_eff.models.call import Call
from vlm_eff.models.cost import decoder_flops
from vlm_eff.models.kv.layer import CompressedLayer
from vlm_eff.models.slots import Slots

# what a cache layer stores: its slots, or its length when nothing is missing; rows and heads
Stored = tuple[Slots | int | Callable[[], Tensor], int, int]


@dataclass(frozen=True)
class Step:
    """What FLOPs of a decode step are computed from: tokens by layer where there are more than one, keys of layers that
    slide, and how often attention is computed; `extra` is what packed entries cost to read."""

    rows: int
    past: int
    tokens: dict[int, int]
    sliding: dict[int, int]
    again: dict[int, float]
    extra: int

    def flops(self, adapter: Adapter, stored: list[Stored]) -> float:
        """Decoder FLOPs of the step, given what the layers store behind it."""
        if not stored:
            return self.bare(adapter)
        layers = range(adapter.num_layers)
        tokens = [self.tokens.get(layer, 1) for layer in layers]
        keys = [self.sliding.get(layer) or _width(stored[layer][0]) for layer in layers]
        asking = [count * self.again.get(layer, 1) for layer, count in enumerate(tokens)]
        return decoder_flops(adapter, tokens, keys, self.rows, asking) + self.extra

    def bare(self, adapter: Adapter) -> float:
        """The same of a bare model."""
        layers = range(adapter.num_layers)
        keys = [min(self.past, most_entries(adapter, layer)) + 1 for layer in layers]
        return decoder_flops(adapter, [1] * len(layers), keys, self.rows)


def step_of(adapter: Adapter, call: Call, cache: Any, before: list[Stored]) -> Step:
    """The newest decode step; called at each of them, so that it asks the device nothing."""
    tokens = {layer: size for layer, (size, _) in call.sequence.items()}
    # what a sliding layer attends to it stores no longer
    kinds = getattr(adapter.decoder.config, "layer_types", None) or ()
    windows = [layer for layer in range(min(len(before), len(kinds))) if kinds[layer] == "sliding_attention"]
    sliding = {layer: _width(before[layer][0]) + tokens.get(layer, 1) for layer in windows}
    extra = 0
    for layer in cache.layers if cache is not None else ():
        if isinstance(layer, CompressedLayer) and layer.segments:
            group = adapter.ranks.queries // adapter.ranks.keys
            # a rank holds its part of the heads alone
            extra += adapter.ranks.size * sum(segment.extra_flops(group) for segment in layer.segments)
    return Step(call.rows, call.past, tokens, sliding, dict(call.again), extra)


def _width(what: Slots | int | Callable[[], Tensor]) -> int:
    """Entries of a row and head, fillers included."""
    if isinstance(what, int):
        return what
    return what.stored if isinstance(what, Slots) else int(what().shape[2])


def most_entries(adapter: Adapter, layer: int) -> int:
    """Entries a bare model keeps at `layer` at most."""
    config = adapter.decoder.config
    kinds = getattr(config, "layer_types", None)
    if kinds is None or kinds[layer] != "sliding_attention":
        return 1 << 62
    return int(config.sliding_window) - 1
