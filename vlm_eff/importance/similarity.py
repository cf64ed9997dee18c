"""How alike tokens are: cosine similarities in float32, all pairs of a row or one line of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# one block of pairs holds at most this many numbers (64 MiB of float32), however many tokens a row has
_BLOCK = 1 << 24
# up to this many tokens all pairs of a row are worked out once; beyond, a line is worked out whenever it is asked for
TABLE = 4096

# rows of a stripe of a symmetric table: small enough to skip nearly half of it, large enough to multiply fast
_STRIPE = 256

Lines = Callable[[Tensor], Tensor]
"""columns [B] -> similarity of each row's column to all columns of that row [B, V]"""


def normalised(x: Tensor) -> Tensor:
    """Vectors of length one [..., D] float32; a vector of zeros stays zero, so it is like nothing."""
    return torch.nn.functional.normalize(x.float(), dim=-1, eps=torch.finfo(torch.float32).tiny)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between `a` and `b` [..., D] -> [...] float32, in [-1, 1]; 0 for a vector of zeros."""
    return (normalised(a) * normalised(b)).sum(-1).clamp(-1, 1)


def pairwise(x: Tensor, valid: Tensor, other: Tensor | None = None) -> Tensor:
    """Cosine similarity of all pairs [B, V, W] float32, in [-1, 1]; lines of tokens that do not exist are 0.

    x: [B, V, D]; valid: [B, V] which of them exist; other: [B, W, D], default `x` itself (then W = V)
    The result is the only large tensor. Among themselves, every pair is worked out once and is the same both ways.
    Use `blocks` where a part of it at a time is enough.
    """
    if other is None:
        return _symmetric(normalised(x) * valid[:, :, None])
    made = x.new_empty(x.shape[0], x.shape[1], other.shape[1], dtype=torch.float32)
    for start, part in blocks(x, valid, other):
        made[:, start : start + part.shape[1]] = part
    return made


def _symmetric(unit: Tensor) -> Tensor:
    """All products of the vectors of each row [B, V, V], in stripes from the diagonal on."""
    width = unit.shape[1]
    made = unit.new_empty(unit.shape[0], width, width)
    for start in range(0, width, _STRIPE):
        part = (unit[:, start : start + _STRIPE] @ unit[:, start:].transpose(1, 2)).clamp_(-1, 1)
        made[:, start : start + _STRIPE, start:] = part
        made[:, start:, start : start + _STRIPE] = part.transpose(1, 2)
    return made


def blocks(x: Tensor, valid: Tensor, other: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
    """The lines of `pairwise` in blocks: (first line, similarities [B, C, W]), no more than 64 MiB alive at a time.

    Columns of tokens that do not exist are not masked.
    """
    unit = normalised(x)
    against = unit if other is None else normalised(other)
    size = max(1, _BLOCK // max(1, against.shape[0] * against.shape[1]))
    for start in range(0, x.shape[1], size):
        part = unit[:, start : start + size] @ against.transpose(1, 2)
        yield start, part.clamp_(-1, 1).masked_fill_(~valid[:, start : start + size, None], 0.0)


def lines(x: Tensor, valid: Tensor) -> Lines:
    """A function that gives one line of `pairwise` for each row; for greedy choices, which need one line a step.

    Rows of up to 4,096 tokens are worked out once (V * V * 4 bytes each); longer ones a line at a time, so that memory
    grows with V alone.
    """
    if x.shape[1] <= TABLE:
        return table_lines(pairwise(x, valid))
    rows = torch.arange(x.shape[0], device=x.device)
    unit = normalised(x) * valid[:, :, None]
    return lambda column: (unit @ unit[rows, column][:, :, None])[:, :, 0].clamp(-1, 1)


def table_lines(table: Tensor) -> Lines:
    """`lines` of a table [B, V, V] that is there already."""
    rows = torch.arange(table.shape[0], device=table.device)
    return lambda column: table[rows, column]
