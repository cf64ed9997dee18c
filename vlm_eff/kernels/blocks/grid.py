"""Where the blocks of queries and of keys begin and end, and which pairs of them the order of tokens leaves over."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.errors import InputError, explain


@dataclass(frozen=True)
class Grid:
    """The blocks of a causal pass: Q queries at the end of S keys, in blocks of `rows` and of `columns`.

    Positions are absolute: row r of the call is S - Q + r. Where left padding is, it counts too.

    Raises:
        InputError: more queries than keys, none of either, or blocks of no token.
    """

    queries: int
    keys: int
    rows: int
    columns: int
    device: torch.device

    def __post_init__(self) -> None:
        if not 1 <= self.queries <= self.keys:
            got = f"{self.queries} queries, {self.keys} keys"
            raise InputError(explain(got, "at least one query, and a key for each", "Count cached keys among the keys"))
        if self.rows < 1 or self.columns < 1:
            got = f"blocks of {self.rows} queries and {self.columns} keys"
            raise InputError(explain(got, "at least one token a block", "Take 128 and 64"))

    @property
    def past(self) -> int:
        """Keys before the first query."""
        return self.keys - self.queries

    @property
    def shape(self) -> tuple[int, int]:
        """Blocks of queries NQ and of keys NK."""
        return -(-self.queries // self.rows), -(-self.keys // self.columns)

    @property
    def top(self) -> Tensor:
        """Position of the first query of each block [NQ, 1]."""
        return (self.past + torch.arange(self.shape[0], device=self.device) * self.rows)[:, None]

    @property
    def bottom(self) -> Tensor:
        """Position of the last query of each block [NQ, 1]."""
        return (self.top + self.rows - 1).clamp(max=self.keys - 1)

    @property
    def left(self) -> Tensor:
        """Position of the first key of each block [NK]."""
        return torch.arange(self.shape[1], device=self.device) * self.columns

    @property
    def right(self) -> Tensor:
        """Position of the last key of each block [NK]."""
        return (self.left + self.columns - 1).clamp(max=self.keys - 1)

    @property
    def whole(self) -> Tensor:
        """Blocks that hold as many keys as a block holds [NK]."""
        return self.left + self.columns <= self.keys

    def seen(self, first: Tensor | None) -> tuple[Tensor, Tensor]:
        """Pairs of blocks with a causal pair of tokens in them, and those in which every pair is [B | 1, 1, NQ, NK].

        first: [B] int32, the first key that is no left padding. A block of fewer keys than `columns` is never the
        second, so that nobody has to look at its end.
        """
        begin = self.first(first)
        some = torch.maximum(self.left, begin) <= torch.minimum(self.right, self.bottom)
        every = (self.right <= self.top) & (self.left >= begin) & self.whole
        return some, every

    def first(self, first: Tensor | None) -> Tensor:
        """The first real key of each row of the batch, to be compared with positions [B | 1, 1, 1, 1]."""
        if first is None:
            return torch.zeros(1, 1, 1, 1, dtype=torch.int32, device=self.device)
        if first.dim() != 1 or first.is_floating_point():
            got = f"first of shape {list(first.shape)} and type {first.dtype}"
            raise InputError(explain(got, "integers [B]", "Give the number of padded keys of each row"))
        return first[:, None, None, None]

    def by_keys(self, flags: Tensor, fill: bool) -> Tensor:
        """Flags of keys [..., S] in their blocks [..., NK, columns]; places behind the last key get `fill`."""
        return _blocks(flags, self.shape[1], self.columns, fill)

    def by_queries(self, flags: Tensor, fill: bool) -> Tensor:
        """Flags of queries [..., Q] in their blocks [..., NQ, rows]; places behind the last query get `fill`."""
        return _blocks(flags, self.shape[0], self.rows, fill)


def grid_of(query: Tensor, key: Tensor, rows: int, columns: int) -> Grid:
    """The blocks of a call: query [B, H, Q, Dh], key [B, Hkv, S, Dh]; InputError where they do not belong together."""
    same = query.dim() == 4 == key.dim() and query.shape[0] == key.shape[0] and query.shape[3] == key.shape[3]
    if not same or query.shape[1] % key.shape[1]:
        got = f"a query of shape {list(query.shape)} and a key of shape {list(key.shape)}"
        raise InputError(explain(got, "[B, H, Q, Dh] and [B, Hkv, S, Dh], H a multiple of Hkv", "Give what attends"))
    return Grid(query.shape[2], key.shape[2], rows, columns, query.device)


def real(grid: Grid, first: Tensor | None) -> Tensor:
    """Keys that are no left padding [B | 1, S]."""
    return torch.arange(grid.keys, device=grid.device) >= grid.first(first)[:, 0, 0]


def _blocks(flags: Tensor, blocks: int, size: int, fill: bool) -> Tensor:
    padded = torch.nn.functional.pad(flags, (0, blocks * size - flags.shape[-1]), value=fill)
    return padded.unflatten(-1, (blocks, size))
