"""Rows of a batch in whatever a denoiser is called with, and in what it returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# these have no batch axis, and may by accident be as long as the batch
_ROTARY = "image_rotary_emb video_rotary_emb rotary_emb rotary_embedding rotary_pos_emb freqs_cis rope"
_SHARED = frozenset({"img_ids", "txt_ids", "attention_kwargs", "position_embeddings", *_ROTARY.split()})


def take(value: Any, index: Tensor, rows: int) -> Any:
    """`value` with rows `index` [K] of every tensor whose first axis has `rows`; containers are rebuilt."""
    return _each(value, rows, lambda tensor: tensor.index_select(0, index.to(tensor.device)))


def take_call(args: tuple[Any, ...], kwargs: dict[str, Any], index: Tensor, rows: int) -> tuple[Any, dict[str, Any]]:
    """A call with rows `index` alone."""
    named = {name: value if name in _SHARED else take(value, index, rows) for name, value in kwargs.items()}
    return tuple(take(value, index, rows) for value in args), named


def join(computed: Tensor, predicted: Tensor, rows: Tensor) -> Tensor:
    """`predicted` [R, ...] where `rows` [R] says so, and the rows of `computed` [K, ...] elsewhere."""
    made = predicted.to(computed.dtype, copy=True)
    made[~rows.to(made.device)] = computed
    return made


def _each(value: Any, rows: int, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value) if value.dim() > 0 and value.shape[0] == rows else value
    if isinstance(value, dict):
        return type(value)({k: v if k in _SHARED else _each(v, rows, change) for k, v in value.items()})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_each(item, rows, change) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_each(item, rows, change) for item in value)
    return value


class Streams:
    """How the output of a module is made of tensors: taken apart once, put together around others.

    Tensors, tuples or lists of tensors, dicts and diffusers' output classes; what is no tensor is kept as it is.
    """

    def __init__(self, output: Any) -> None:
        self._output = output
        self.tensors = tuple(_tensors(output))

    def around(self, tensors: tuple[Tensor, ...]) -> Any:
        """The same output with other tensors."""
        return _rebuild(self._output, iter(tensors))

    @property
    def skeleton(self) -> Streams:
        """The same without its tensors, to be kept."""
        made = Streams.__new__(Streams)
        made._output = _rebuild(self._output, (torch.empty(0) for _ in self.tensors))
        made.tensors = ()
        return made


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [found for item in value.values() for found in _tensors(item)]
    if isinstance(value, list | tuple):
        return [found for item in value for found in _tensors(item)]
    return []


def _rebuild(value: Any, tensors: Any) -> Any:
    if isinstance(value, Tensor):
        return next(tensors)
    if dataclasses.is_dataclass(value) and isinstance(value, dict):
        return type(value)(**{key: _rebuild(item, tensors) for key, item in value.items()})
    if isinstance(value, dict):
        return type(value)({key: _rebuild(item, tensors) for key, item in value.items()})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_rebuild(item, tensors) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_rebuild(item, tensors) for item in value)
    return value
