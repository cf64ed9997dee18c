"""The full-length oracle of tower plugins: nothing becomes shorter, and no attention gets a bias.

Merging tokens must equal writing their mean into all of them and letting every copy attend and be attended to: a token
that stands for three is three equal tokens. Only what became of which token is taken from the handle.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

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
