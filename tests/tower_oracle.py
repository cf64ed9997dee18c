"""The full-length oracles of tower plugins, in which nothing becomes shorter.

Merging tokens must equal writing their mean into all of them and letting every copy attend and be attended to: a token
that stands for three is three equal tokens. Dropping tokens must equal hiding their keys from everybody else and
letting them keep the state they had. Only what became of which token is taken from the handle.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

Groups = list[tuple[Tensor, Tensor]]
"""of each image: (number of the token that each original one is part of, original place of every token left)"""

NORMS = ("norm2", "layer_norm2", "layernorm_after", "ffn_norm", "ln_2")


class Images:
    """Images of a tower's hidden states, rows of a batch or one after the other."""

    def __init__(self, groups: Groups) -> None:
        self.lengths = [len(slot) for slot, _ in groups]

    def split(self, hidden: Tensor) -> list[Tensor]:
        if hidden.dim() == 3 and hidden.shape[0] == len(self.lengths) and hidden.shape[1] == self.lengths[0]:
            return list(hidden)
        return list((hidden[0] if hidden.dim() == 3 else hidden).split(self.lengths))

    def join(self, parts: list[Tensor], like: Tensor) -> Tensor:
        if like.dim() == 3 and like.shape[0] == len(parts):
            return torch.stack(parts)
        made = torch.cat(parts)
        return made[None] if like.dim() == 3 else made


def means(hidden: Tensor, groups: Groups) -> Tensor:
    """The mean of each group at all its members."""
    images = Images(groups)
    made = []
    for part, (slot, _) in zip(images.split(hidden), groups, strict=True):
        made.append(torch.stack([part[slot == number].mean(0) for number in slot.tolist()]))
    return images.join(made, hidden)


def seats(table: Tensor, groups: Groups) -> Tensor:
    """A rotary table in which every token has the place of the token it is part of."""
    images = Images(groups)
    made = [part[place[slot]] for part, (slot, place) in zip(images.split(table), groups, strict=True)]
    return images.join(made, table)


@contextmanager
def merged(blocks: nn.ModuleList, groups: list[Groups]) -> Iterator[None]:
    """While open the tower writes the means of `groups[block]` between attention and MLP of every block."""
    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            norm = next(getattr(block, name) for name in NORMS if hasattr(block, name))
            now, before = groups[index], groups[index - 1] if index else None

            def write(module: Any, args: Any, output: Any = None, now: Groups = now) -> Any:
                return means(args[0] if output is None else output, now)

            def rotate(module: Any, args: Any, kwargs: Any, before: Groups | None = before) -> Any:
                tables = kwargs.get("position_embeddings")
                if tables is None or before is None:
                    return None
                return args, kwargs | {"position_embeddings": tuple(seats(table, before) for table in tables)}

            hooks = [
                block.register_forward_pre_hook(rotate, with_kwargs=True),
                norm.register_forward_pre_hook(lambda module, args, write=write: (write(module, args),)),
                # before the hooks with which transformers captures hidden states
                block.register_forward_hook(
                    lambda module, args, output, write=write: write(module, args, output), prepend=True
                ),
            ]
            for hook in hooks:
                stack.callback(hook.remove)
        yield


ATTENTION = ("self_attn", "attention", "attn")
NAME = "tower_oracle"


@contextmanager
def dropped(blocks: nn.ModuleList, groups: list[Groups], when: dict[int, str]) -> Iterator[None]:
    """While open, tokens that `groups[block]` says were dropped are hidden, and keep their state.

    when: "before" or "inside" for each block that drops.
    """
    state: dict[str, Any] = {}
    attention = [next(getattr(block, name) for name in ATTENTION if hasattr(block, name)) for block in blocks]
    config = attention[0].config
    eager = sys.modules[type(attention[0]).__module__].eager_attention_forward
    nobody = [torch.zeros(len(slot), dtype=torch.bool) for slot, _ in groups[0]]
    gone = [nobody, *[[slot < 0 for slot, _ in after] for after in groups]]

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
        block = next(index for index, one in enumerate(attention) if one is module)
        hidden = gone[block + 1] if when.get(block) == "before" else gone[block]
        start, count = state["cursor"], key.shape[2]
        state["cursor"] = start + count
        rows = len(key) == len(hidden) and count == len(hidden[0])
        keys = (
            torch.stack(hidden)[:, None, None] if rows else torch.cat(hidden)[None, None, None, start : start + count]
        )
        bias = torch.zeros(keys.shape).masked_fill(keys, torch.finfo(torch.float32).min)
        # a dropped token sees itself, so that no row is empty
        eye = torch.eye(count, dtype=torch.bool)
        bias = bias.expand(-1, -1, count, -1).masked_fill(eye, 0.0)
        if attention_mask is not None:
            hides = attention_mask.dtype == torch.bool
            bias = bias + ((~attention_mask).float() * -1e30 if hides else attention_mask)
        return eager(module, query, key, value, bias, **kwargs)

    before = config._attn_implementation_internal
    AttentionInterface.register(NAME, attend)
    base = before if before in ALL_MASK_ATTENTION_FUNCTIONS._global_mapping else "eager"
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS[base])
    config._attn_implementation_internal = NAME
    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            for hook in _freeze(block, gone[index], gone[index + 1], when.get(index, "before"), groups[0], state):
                stack.callback(hook.remove)
        try:
            yield
        finally:
            config._attn_implementation_internal = before
            AttentionInterface._global_mapping.pop(NAME)
            AttentionMaskInterface._global_mapping.pop(NAME)


def _freeze(
    block: Any, earlier: list[Tensor], now: list[Tensor], when: str, groups: Groups, state: dict[str, Any]
) -> list[Any]:
    """Hooks that give dropped tokens of a block the state they had."""
    images = Images(groups)
    norm = next(getattr(block, name) for name in NORMS if hasattr(block, name))
    kept: dict[str, Tensor] = {}

    def enter(module: Any, args: Any, kwargs: Any) -> None:
        state["cursor"] = 0
        kept["input"] = args[0] if args else kwargs["hidden_states"]

    def note(module: Any, args: Any) -> None:
        kept["inside"] = args[0]

    def leave(module: Any, args: Any, output: Tensor) -> Tensor:
        parts = zip(
            images.split(output), images.split(kept["input"]), images.split(kept["inside"]), earlier, now, strict=True
        )
        made = []
        for after, before, inside, old, new in parts:
            last = inside if when == "inside" else before
            made.append(torch.where(old[:, None], before, torch.where(new[:, None], last, after)))
        return images.join(made, output)

    return [
        block.register_forward_pre_hook(enter, with_kwargs=True),
        norm.register_forward_pre_hook(note),
        block.register_forward_hook(leave, prepend=True),
    ]
