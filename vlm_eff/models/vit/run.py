"""The state of one run of a tower; lives in a context variable, never on a module."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vlm_eff.core.tower import TowerAction
from vlm_eff.models.vit.layout import Layout, Packed
from vlm_eff.models.vit.state import Tokens


@dataclass
class Pending:
    """A reduction between attention and MLP of a block, until the block is done."""

    action: TowerAction
    before: Tensor
    after: Tokens
    mlp_ran: bool = False


@dataclass
class Run:
    """One pass through the blocks.

    tokens:  what is left now; window, padding: [I, N] see `TowerView`, of the bare tower's tokens
    emitted: the full-length tensor that the last block returned, and `short`, what it stands for [I, T, D]
    seen:    queries and keys of looked-at blocks, one pair for each attention call
    history: what was left behind each block that reduced something
    attended, processed: layouts of each block's attention and MLP; borders: bounds of what attends together, of blocks
             that were given any
    """

    owner: object
    tokens: Tokens
    window: Tensor | None = None
    padding: Tensor | None = None
    pixels: Any = None
    inputs: dict[str, Any] = field(default_factory=dict)
    emitted: Tensor | None = None
    short: Tensor | None = None
    pending: Pending | None = None
    cursor: int = 0
    fused: bool = False
    seen: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    history: dict[int, Tokens] = field(default_factory=dict)
    attended: dict[int, Layout] = field(default_factory=dict)
    processed: dict[int, Layout] = field(default_factory=dict)
    borders: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    deciding: float = 0.0

    @property
    def start(self) -> Tokens:
        """Before anything was reduced."""
        return Tokens.all(self.tokens.full, self.tokens.slot.device)

    def close(self) -> None:
        """Let go of states, queries and keys: a report needs the layouts only."""
        self.emitted, self.short, self.pixels, self.inputs = None, None, None, {}
        self.tokens = replace(self.tokens, parked=None)
        self.history = {block: replace(tokens, parked=None) for block, tokens in self.history.items()}
        self.seen.clear()

    def flat_places(self) -> Tensor:
        """Original place in the packed sequence of every token that is left [N']."""
        tokens = self.tokens
        counts = torch.tensor(tokens.full.lengths, device=tokens.place.device)
        start = (counts.cumsum(0) - counts)[:, None]
        packed = tokens.now.pack(tokens.place + start)
        return packed.flatten()

    def kept(self, prefix: int) -> Tensor:
        """1 for each patch that is still itself, 0 for those that are not, in the tower's order [P, 1]."""
        tokens = self.tokens
        own = tokens.place.gather(1, tokens.slot.clamp(min=0))
        column = torch.arange(own.shape[1], device=own.device)
        stayed = ((own == column) & (tokens.slot >= 0))[:, :, None].float()
        if isinstance(tokens.full, Packed):
            return tokens.full.pack(stayed).reshape(-1, 1)
        return stayed[:, prefix:].flatten(0, 1)

    def gathered(self, table: Tensor | None) -> Tensor | None:
        """A property [I, N] of original tokens for those that are left [I, T]."""
        return None if table is None else table.gather(1, self.tokens.place)


def shorten(borders: Tensor, places: Tensor) -> Tensor:
    """Bounds of segments over the original sequence, over what is left of it; emptied segments vanish.

    borders: [S + 1] from 0; places: [N'] original places, segment by segment.
    """
    segment = torch.searchsorted(borders[1:].to(places.dtype).contiguous(), places.contiguous(), right=True)
    counts = torch.bincount(segment, minlength=len(borders) - 1)
    made = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return torch.unique_consecutive(made).to(borders.dtype)


def narrow_mask(mask: Tensor, run: Run, batched: bool) -> Tensor:
    """A mask [b, h, Q, K] over original tokens for those that are left."""
    if batched:
        place = run.tokens.place[:, None]
        wide = mask.expand(len(place), -1, -1, -1)
        if wide.shape[2] > 1:
            wide = wide.gather(2, place[:, :, :, None].expand(-1, wide.shape[1], -1, wide.shape[3]))
        return wide.gather(3, place[:, :, None].expand(-1, wide.shape[1], wide.shape[2], -1))
    places = run.flat_places()
    narrow = mask if mask.shape[2] == 1 else mask[:, :, places]
    return narrow[..., places]


def key_bias(tokens: Tokens, like: Tensor) -> Tensor | None:
    """Float bias on keys [I, T], in the dtype of `like`: log of sizes, -inf at padding; None when it would be zero."""
    if tokens.proportional:
        return tokens.size.log().to(like.dtype)
    valid = tokens.now.valid
    if valid is None:
        return None
    return torch.zeros_like(tokens.size, dtype=like.dtype).masked_fill(~valid, -torch.inf)


def add_bias(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """A mask (bool or float) and a bias on keys [b, 1, 1, K] as one float mask."""
    if bias is None or mask is None:
        return mask if bias is None else bias
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask, torch.finfo(bias.dtype).min)
    return mask + bias
