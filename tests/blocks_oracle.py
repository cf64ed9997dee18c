"""The oracle of sparse prefill: the unmodified model, whose prefill attends under the pattern's mask of pairs.

The mask is made pair by pair from the definition (`tests/kernels/by_pair.py`), from the queries and keys of the very
layer, and attention is a softmax in the open. It shares no code with the library under test.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.kernels import by_pair
from tests.tiny import TinyInputs, visual_mask

_NUMBER = itertools.count()


@contextmanager
def blocks_by_pair(
    model: PreTrainedModel, plugin: Any, *turns: TinyInputs, repeats: int = 1, waiting: int = 0
) -> Iterator[None]:
    """While open, calls as long as one of `turns` (lengths differ) attend under the plugin's mask, others in full.

    repeats: rows that beams or samples make of one prompt; waiting: candidates that stand behind the prompt
    """
    config = model.get_decoder().config
    before, name = config._attn_implementation, f"oracle_blocks{next(_NUMBER)}"
    base = ALL_ATTENTION_FUNCTIONS["sdpa"]
    pictures = {turn["input_ids"].shape[1] + waiting: visual_mask(turn) for turn in turns}
    layers = range(config.num_hidden_layers) if plugin.layers is None else plugin.layers

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        visual = pictures.get(query.shape[2])
        if visual is None or module.layer_idx not in layers:
            return base(module, query, key, value, mask, **kwargs)
        visual = torch.nn.functional.pad(visual, (0, waiting)).repeat_interleave(repeats, 0)
        scaling, softcap = kwargs.get("scaling"), kwargs.get("softcap")
        rows = [
            _row(plugin.pattern, module.layer_idx, query[row], key[row], _real(mask, row, key), visual[row], waiting)
            for row in range(len(query))
        ]
        return _softmax(query, key, value, torch.stack(rows), scaling, softcap).transpose(1, 2).contiguous(), None

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    config._attn_implementation_internal = name
    try:
        yield
    finally:
        config._attn_implementation_internal = before
        AttentionInterface._global_mapping.pop(name)
        AttentionMaskInterface._global_mapping.pop(name)


def _real(mask: Tensor | None, row: int, key: Tensor) -> list[int]:
    """Columns of the keys that are no padding."""
    if mask is None:
        return list(range(key.shape[2]))
    return mask[row if len(mask) > 1 else 0, 0, -1].nonzero()[:, 0].tolist()


def _row(pattern: Any, layer: int, query: Tensor, key: Tensor, real: list[int], visual: Tensor, waiting: int) -> Tensor:
    """The mask [H, Q, S] of one row of the batch: its real tokens among themselves, as if it were alone."""
    heads, length = query.shape[:2]
    past = key.shape[1] - length
    made = torch.zeros(heads, length, key.shape[1], dtype=torch.bool)
    ends = len(real) - waiting
    asked = [column - past for column in real[:ends] if column >= past]
    if bool(visual.any()) and key.shape[1] > 0:
        text = torch.tensor([column < past or not bool(visual[column - past]) for column in real[:ends]])
        short = _pairs(pattern, layer, query[:, asked], key[:, real[:ends]], text)
        rows, columns = torch.tensor(asked), torch.tensor(real[:ends])
        made[:, rows[:, None], columns] = short.expand(heads, -1, -1)
        asked = [column - past for column in real[ends:]]
    for row in asked:
        made[:, row, [column for column in real if column <= row + past]] = True
    return made


def _pairs(pattern: Any, layer: int, query: Tensor, key: Tensor, text: Tensor) -> Tensor:
    kind, tile, (heads, queries) = type(pattern).__name__, pattern.tile, query.shape[:2]
    if kind == "CrossModal":
        return by_pair.cross_modal(text, queries, 0, pattern.window, pattern.sinks)
    if kind == "Streaming":
        dense = [(layer, head * len(key) // heads) in pattern.dense for head in range(heads)]
        return by_pair.streaming(dense, queries, key.shape[1], 0, pattern.sinks, pattern.local)
    if kind == "VerticalSlash":
        names = ("verticals", "slashes", "last", "sinks", "local")
        return by_pair.vertical_slash(query, key, 0, tile, **{name: getattr(pattern, name) for name in names})
    names = ("count", "mass", "similarity")
    return by_pair.top_blocks(query, key, 0, tile, **{name: getattr(pattern, name) for name in names})


def _softmax(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float | None, softcap: float | None
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0) @ value
