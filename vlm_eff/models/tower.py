"""Attention inside the vision tower, brought to the visual tokens of the prompt.

The tower runs once on all images of a request, before beams are expanded and outside the decoder's call, so what is
seen waits here until the prompt's prefill asks. Rows of attention are reduced where they are made, chunk by chunk.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from vlm_eff.core.errors import CapabilityError, StateError, explain
from vlm_eff.core.handle import Undo
from vlm_eff.core.plugin import TowerAttention
from vlm_eff.models import seams
from vlm_eff.models.adapter import Adapter
from vlm_eff.models.tap import install_tap
from vlm_eff.models.visual import VisualSpans

_CHUNK = 256


class TowerObserver:
    """Reduces the attention of some tower blocks to one number a patch, and keeps the newest run of the tower."""

    def __init__(self, adapter: Adapter, wanted: set[TowerAttention]) -> None:
        self._adapter = adapter
        self._rows: dict[int, set[str]] = defaultdict(set)
        for need in wanted:
            self._rows[need.block % len(adapter.blocks)].add(need.row)
        self._seen: dict[tuple[int, str], list[Tensor]] = {}
        self._inputs: dict[str, Any] = {}
        if adapter.family.tower_map is None:
            raise CapabilityError(
                explain(
                    f"tower attention on {adapter.name}, whose tokens are not mapped to patches yet",
                    "families whose tower blocks map to tokens one by one or in fixed windows",
                    "Use a method that observes the decoder",
                )
            )

    def install(self, undo: Undo) -> None:
        """Put the tap on the wanted blocks."""
        seams.before(self._adapter.tower, self._begin, undo)
        install_tap({b: attention_of(self._adapter.blocks[b]) for b in sorted(self._rows)}, self._saw, undo)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._seen = defaultdict(list)
        bound = inspect.signature(module.forward).bind_partial(*args).arguments
        # pixels are not kept: grids and sizes are all a map needs
        self._inputs = {k: v for k, v in {**bound, **kwargs}.items() if k in ("grid_thw", "image_sizes")}

    def _saw(self, block: int, query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("cu_seq_lens_q") is not None:
            raise CapabilityError(
                explain(
                    "tower attention under flash attention's packed images",
                    "eager and sdpa towers",
                    'Load the model with attn_implementation={"vision_config": "sdpa"}',
                )
            )
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        skip = 1 if self._adapter.family.class_token else 0
        for row in self._rows[block]:
            reduced = _class_row(query, key, mask, scaling) if row == "cls" else _received(query, key, mask, scaling)
            self._seen[(block, row)].append(reduced[:, skip:].reshape(-1))

    def candidates(self, wanted: TowerAttention, spans: VisualSpans) -> Tensor:
        """Values of the candidates [B, V] that entered the language model; 0 where a row has fewer."""
        parts = self._seen.get((wanted.block % len(self._adapter.blocks), wanted.row))
        tokens = spans.count.sum()
        if not parts:
            raise StateError(
                explain("the vision tower was not run while attached", "images encoded by the model", "Pass pixels")
            )
        assert self._adapter.family.tower_map is not None
        flat = self._adapter.family.tower_map(
            self._adapter.tower, self._adapter.core.config, torch.cat(parts), self._inputs
        )
        expand, rest = divmod(int(tokens), len(flat))
        if rest or expand == 0:
            raise CapabilityError(
                explain(
                    f"{int(tokens)} visual tokens in the prompt, {len(flat)} from the tower",
                    "prompts whose images were all encoded in one run of the tower",
                    "Do not mix images and videos in one request with this method",
                )
            )
        # beams and returned sequences repeat each sample's rows: row r belongs to sample r // expand
        counts = spans.count[::expand]
        start = (counts.cumsum(0) - counts).repeat_interleave(expand)
        column = torch.arange(spans.slot.shape[1], device=flat.device)
        index = (start[:, None] + column).clamp(max=len(flat) - 1)
        return torch.where(spans.valid, flat[index], 0.0)


def attention_of(block: nn.Module) -> nn.Module:
    """The attention module of a tower block."""
    for name in ("self_attn", "attention", "attn"):
        if hasattr(block, name):
            found: nn.Module = getattr(block, name)
            return found
    raise CapabilityError(
        explain(f"{type(block).__name__} without attention", "blocks with self_attn, attention or attn", "Report it")
    )


def _class_row(query: Tensor, key: Tensor, mask: Any, scaling: float) -> Tensor:
    """Attention of the first query [b, N] float32, mean over heads."""
    return _weights(query[:, :, :1], key, _mask_rows(mask, 0, 1), scaling)[:, :, 0].mean(1)


def _received(query: Tensor, key: Tensor, mask: Any, scaling: float) -> Tensor:
    """Mean attention that each key receives [b, N] float32, over queries and heads; never the N x N matrix."""
    total = query.new_zeros(query.shape[0], key.shape[2], dtype=torch.float32)
    for start in range(0, query.shape[2], _CHUNK):
        part = query[:, :, start : start + _CHUNK]
        total += _weights(part, key, _mask_rows(mask, start, part.shape[2]), scaling).mean(1).sum(1)
    return total / query.shape[2]


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    logits = (query.float() @ key.float().transpose(2, 3)) * scaling
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask.float()
    return logits.softmax(-1)


def _mask_rows(mask: Any, start: int, count: int) -> Tensor | None:
    if not isinstance(mask, Tensor):
        return None
    return mask if mask.shape[2] == 1 else mask[:, :, start : start + count]
