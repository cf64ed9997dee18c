"""Token merging written again to be read: one row after another, with matrices, on replaced forwards."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# class of a block -> its self attention
_SELF = {
    "BasicTransformerBlock": "attn1",
    "JointTransformerBlock": "attn",
    "FluxTransformerBlock": "attn",
    "FluxSingleTransformerBlock": "attn",
    "WanTransformerBlock": "attn1",
}


def averaging(metric: Tensor, grid: tuple[int, int, int], ratio: float) -> tuple[Tensor, Tensor, list[int]]:
    """Of one row [N, C] with the first token of each 2 x 2 cell as goal: means [K, N], copies [N, K], who stays."""
    frames, rows, columns = grid
    goals = [
        (frame * rows + row) * columns + column
        for frame in range(frames)
        for row in range(0, rows - 1, 2)
        for column in range(0, columns - 1, 2)
    ]
    sources = [place for place in range(len(metric)) if place not in goals]
    unit = metric.double() / metric.double().norm(dim=1, keepdim=True)
    like = unit[sources] @ unit[goals].T
    order = sorted(range(len(sources)), key=lambda i: -float(like[i].max()))
    goes = {sources[i]: goals[int(like[i].argmax())] for i in order[: int(ratio * len(metric))]}
    stays = [place for place in range(len(metric)) if place not in goes]
    mean, back = torch.zeros(len(stays), len(metric)), torch.zeros(len(metric), len(stays))
    for place in range(len(metric)):
        slot = stays.index(goes.get(place, place))
        mean[slot, place] = 1.0
        back[place, slot] = 1.0
    return mean / mean.sum(1, keepdim=True), back, stays


def _row_of(value: Any, row: int, rows: int) -> Any:
    batched = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == rows
    return value[row : row + 1] if batched else value


def _attend(own: Any, block: dict[str, Any], ratio: float, kwargs: dict[str, Any]) -> Any:
    hidden, metric = kwargs["hidden_states"], block["metric"]
    text, made = hidden.shape[1] - metric.shape[1], []
    for row in range(len(hidden)):
        mean, back, stays = averaging(metric[row], block["grid"], ratio)
        call = {name: _row_of(value, row, len(hidden)) for name, value in kwargs.items() if "rotary" not in name}
        call["hidden_states"] = torch.cat([hidden[row, :text], mean @ hidden[row, text:]])[None]
        for name in kwargs.keys() - call.keys():
            cos, sin = kwargs[name]
            axis = 0 if cos.dim() == 2 else 1
            before = cos.shape[axis] - metric.shape[1]
            index = torch.tensor([*range(before), *(before + place for place in stays)])
            call[name] = (cos.index_select(axis, index), sin.index_select(axis, index))
        out = own(**call)
        first, others = (out[0], out[1:]) if isinstance(out, tuple) else (out, ())
        made.append((torch.cat([first[:, :text], (back @ first[0, text:])[None]], 1), *others))
    joined = tuple(torch.cat(parts) for parts in zip(*made, strict=True))
    return joined if isinstance(out, tuple) else joined[0]


@contextmanager
def merged_by_hand(denoiser: nn.Module, grids: dict[int, tuple[int, int, int]], ratio: float) -> Iterator[None]:
    """Self attention of all blocks whose number of tokens is among `grids` computes on merged tokens."""
    undo = []
    for module in denoiser.modules():
        name = _SELF.get(type(module).__name__)
        if name is None:
            continue
        block: dict[str, Any] = {}

        def seen(module: nn.Module, args: Any, kwargs: Any, block: dict[str, Any] = block) -> None:
            block["metric"] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

        attention = getattr(module, name)
        own = type(attention).forward

        def run(*args: Any, attention: Any = attention, own: Any = own, block: Any = block, **kwargs: Any) -> Any:
            names = ("hidden_states", "encoder_hidden_states", "attention_mask", "rotary_emb")
            named = dict(zip(names, args, strict=False)) | kwargs
            grid = grids.get(block["metric"].shape[1])
            if grid is None:
                return own(attention, **named)
            return _attend(functools.partial(own, attention), {**block, "grid": grid}, ratio, named)

        undo.append(module.register_forward_pre_hook(seen, with_kwargs=True).remove)
        attention.forward = run
        undo.append(functools.partial(attention.__dict__.pop, "forward"))
    try:
        yield
    finally:
        for step in undo:
            step()
