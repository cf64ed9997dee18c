"""What policies of the cache leave of one prompt: which entries each head still stores, in how many bits, in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vlm_eff.core.cache import IMAGE, TEXT, VIDEO
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.report import VisualTokens
from vlm_eff.eval.kv_meter import Result, kv_meter
from vlm_eff.models.kv.compress import Layers
from vlm_eff.models.kv.layer import CompressedLayer
from vlm_eff.models.kv.meter import Watched

KINDS: dict[str, tuple[int, ...]] = {"text": (TEXT,), "visual": (IMAGE, VIDEO)}


@dataclass(frozen=True)
class LayerKept:
    """What one layer stores of a prompt of L tokens.

    bits:  [Hkv, L] bits that a number of the entry really takes, scales and bases included; 0 where the head stores
           none. An entry into which others were merged stands at its own position alone
    bytes: of everything stored, positions included; bytes_bare: of the full layer
    """

    layer: int
    bits: Tensor
    bytes: int
    bytes_bare: int


@dataclass(frozen=True)
class PromptKept:
    """What a policy leaves of a prompt, right behind it.

    modality: [L] int8 in the words of `core/cache.py`; layers: those that can be compressed
    full_bits: bits that a number takes which nobody packed
    """

    modality: Tensor
    layers: tuple[LayerKept, ...]
    full_bits: int

    @property
    def packed(self) -> bool:
        """Some entries take fewer bits than they came in."""
        return any(bool(((layer.bits > 0) & (layer.bits < self.full_bits)).any()) for layer in self.layers)

    def share(self, kind: str) -> Tensor:
        """Share of the prompt's "text" or "visual" entries that each layer and key head stores [layers, Hkv]."""
        which = self._which(kind)
        return torch.stack([(layer.bits[:, which] > 0).float().mean(1) for layer in self.layers])

    def mean_bits(self, kind: str) -> tuple[float | None, ...]:
        """Bits a number of the stored "text" or "visual" entries, mean over each layer; None where it stores none."""
        which, made = self._which(kind), []
        for layer in self.layers:
            bits = layer.bits[:, which]
            made.append(float(bits[bits > 0].mean()) if bool((bits > 0).any()) else None)
        return tuple(made)

    def cells(self, tokens: VisualTokens, place: int, head: int | None) -> tuple[VisualTokens, Tensor]:
        """Which visual tokens layer number `place` stores, and in how many bits, 1 for the most in the layer [n].

        tokens: of the same prompt; head: a key head, or None for all: kept by any of them, and their mean
        """
        bits = self.layers[place].bits[:, tokens.slot]
        most = bits.max().clamp(min=1e-9)
        bits = bits if head is None else bits[head : head + 1]
        return replace(tokens, kept=(bits > 0).any(0)), bits.mean(0) / most

    def _which(self, kind: str) -> Tensor:
        return torch.isin(self.modality, torch.tensor(KINDS[kind], dtype=self.modality.dtype))


def kept_and_errors(
    model: Any, inputs: Mapping[str, Any], plugins: Mapping[str, Plugin | Sequence[Plugin]], steps: int = 8
) -> tuple[Result, dict[str, PromptKept]]:
    """What `kv_meter` measures of one prompt, and what every policy leaves of it; see there for arguments and errors.

    Of a batch the first row is looked at.
    """
    found: dict[str, PromptKept] = {}

    def watch(label: str, watched: Watched, layers: Layers) -> None:
        full = watched.before
        made = [_layer_kept(index, layer, full[index]) for index, layer in layers.items()]
        bits = 8 * next(iter(full.values())).keys.element_size()
        found[label] = PromptKept(watched.modality[0].cpu(), tuple(made), bits)

    return kv_meter(model, inputs, plugins, steps, watch), found


def _layer_kept(index: int, layer: CompressedLayer, full: CompressedLayer) -> LayerKept:
    positions, width = layer.positions()[0].cpu().long(), layer.keys.shape[-1] + layer.values.shape[-1]
    numbers = torch.full(positions.shape, 8.0 * layer.keys.element_size())
    first = 0
    for segment in layer.segments:
        there = int((segment.position >= 0).sum())
        numbers[:, first : first + segment.count] = 8 * _held(segment.contents()) / max(there * width, 1)
        first += segment.count
    bits = torch.zeros(positions.shape[0], full.get_seq_length())
    head, place = (positions >= 0).nonzero(as_tuple=True)
    bits[head, positions[head, place]] = numbers[head, place]
    return LayerKept(index, bits, layer.bytes, full.bytes)


def _held(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, each counted once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}.values())
