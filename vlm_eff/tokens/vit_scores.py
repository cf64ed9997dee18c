"""Scores of the patches inside a vision tower, from the attention of one block. Higher means keep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.importance.keep import check_choice
from vlm_eff.importance.pagerank import joined_heads, weighted_pagerank
from vlm_eff.models.vit.view import TowerView


class TowerScore(Protocol):
    """Ranks the tokens of a tower view."""

    def __call__(self, view: TowerView, depth: float) -> Tensor:
        """Scores [I, T] float32, finite; `depth` is the block's place in the tower, from 0 to 1."""
        ...


@part
@dataclass(frozen=True)
class ClassAttention:
    """Attention that the class token pays to each patch, or that each patch receives on average; mean over heads.

    row: "cls", "received", or "auto": "cls" where the tower has a class token
    """

    row: Literal["auto", "cls", "received"] = "auto"

    def __post_init__(self) -> None:
        check_choice("row", self.row, ("auto", "cls", "received"))

    def __call__(self, view: TowerView, depth: float) -> Tensor:
        query, key = view.query_key()
        if self.row == "cls" or (self.row == "auto" and view.prefix):
            row = _weights(query[:, :, :1], key, _hidden(view, first=True))
            return row[:, :, 0].mean(1)
        real = _real(view)
        total = torch.zeros_like(real, dtype=torch.float32)
        for weights in _heads(view, query, key):
            total += (weights * real[:, :, None]).sum(1)
        return total / query.shape[1] / real.sum(1, keepdim=True)


@part
@dataclass(frozen=True)
class PageRank:
    """Weighted PageRank of each head's attention graph, heads joined by root mean square after a variance filter.

    low, high: variance of a head's scores (scaled to mean one) that lets it count
    """

    low: float = 0.01
    high: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ConfigError(
                explain(f"variance from {self.low} to {self.high}", "0 <= low < high", "Correct the two numbers")
            )

    def __call__(self, view: TowerView, depth: float) -> Tensor:
        # shallow graphs mix slowly: the paper iterates 30 to 50 times there, 5 to 10 in the middle, once in deep blocks
        steps = 40 if depth < 1 / 3 else 8 if depth < 2 / 3 else 1
        query, key = view.query_key()
        real = _real(view)
        ranked = (weighted_pagerank(weights, steps, real) for weights in _heads(view, query, key))
        return joined_heads(ranked, self.low, self.high, real)


def _real(view: TowerView) -> Tensor:
    """True where a token exists and is no padding [I, T]."""
    real = torch.ones(view.size.shape, dtype=torch.bool, device=view.size.device)
    if view.valid is not None:
        real = real & view.valid
    return real if view.padding is None else real & ~view.padding


def _hidden(view: TowerView, first: bool = False) -> Tensor:
    """Keys that queries may not see [I, 1 or T, T]; `first`: only the first query's row."""
    hidden = ~_real(view)[:, None]
    if view.apart is not None:
        rows = view.apart[:, :1] if first else view.apart
        hidden = hidden | (rows[:, :, None] != view.apart[:, None])
    return hidden


def _heads(view: TowerView, query: Tensor, key: Tensor) -> Iterator[Tensor]:
    """Attention [I, T, T] of one head after the other, so that never more than one head's matrix exists."""
    hidden = _hidden(view)
    for head in range(query.shape[1]):
        one = slice(head, head + 1)
        yield _weights(query[:, one], key[:, one], hidden)[:, 0]


def _weights(query: Tensor, key: Tensor, hidden: Tensor) -> Tensor:
    """Softmaxed attention [I, H, Q, T] float32; rows that may see nothing are even."""
    logits = query.float() @ key.float().transpose(2, 3) * query.shape[-1] ** -0.5
    return logits.masked_fill(hidden[:, None], torch.finfo(torch.float32).min).softmax(-1)
