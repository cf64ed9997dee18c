"""Weighted PageRank on attention graphs, and how heads become one score (Zero-TPrune, arXiv:2305.17328, section 3)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def weighted_pagerank(attention: Tensor, steps: int, valid: Tensor | None = None) -> Tensor:
    """Importance that flows along attention: s <- normalise(A^T s), from uniform.

    attention: [..., T, T] rows of queries that sum to one over the keys; steps: iterations, the same for every image
    valid:     [..., T] tokens that exist; others neither give nor get
    Returns [..., T] float32, non-negative, sum one.
    """
    graph = attention.float()
    real = torch.ones(graph.shape[:-1], device=graph.device) if valid is None else valid.float()
    scores = real / real.sum(-1, keepdim=True)
    for _ in range(steps):
        scores = (scores[..., None, :] @ graph)[..., 0, :] * real
        scores = scores / scores.sum(-1, keepdim=True).clamp(min=1e-30)
    return scores


def joined_heads(scores: Iterable[Tensor], low: float, high: float, valid: Tensor) -> Tensor:
    """Root mean square [I, T] of the scores of those heads whose variance lies between `low` and `high`.

    scores: one [I, T] a head, sum one. The variance is that of scores scaled to mean one, so that it does not depend on
    the number of tokens. An image none of whose heads passes takes all heads.
    """
    count = valid.sum(1, keepdim=True).clamp(min=1)
    passed, every, heads = torch.zeros(()), torch.zeros(()), torch.zeros(())
    number = 0
    for head in scores:
        scaled = (head * count).masked_fill(~valid, 1.0)
        variance = ((scaled - 1) ** 2).sum(1, keepdim=True) / count
        good = ((variance >= low) & (variance <= high)).float()
        passed, heads = passed.to(good.device) + good * scaled**2, heads.to(good.device) + good
        every, number = every.to(good.device) + scaled**2, number + 1
    chosen = torch.where(heads > 0, passed / heads.clamp(min=1), every / number)
    return chosen.sqrt().masked_fill(~valid, 0.0)
