"""The patterns of sparse prefill by their definitions, pair by pair in plain Python: what tests hold them against.

Each answers for one row of a batch: a mask [H, Q, S], True where a query sees a key. The Q queries are the last of S
positions, of which those from `begin` on are no padding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor


def by_pair(heads: int, queries: int, keys: int, allowed: Callable[[int, int, int], bool]) -> Tensor:
    """A mask made by asking `allowed(head, i, j)` for every pair of positions."""
    past = keys - queries
    return torch.tensor(
        [[[allowed(h, r + past, j) for j in range(keys)] for r in range(queries)] for h in range(heads)]
    )


def cross_modal(text: Tensor, queries: int, begin: int, window: int, sinks: int) -> Tensor:
    """text: [S]; the same for all heads, so that there is one."""
    words = text.tolist()

    def allowed(_: int, i: int, j: int) -> bool:
        return begin <= j <= i and (words[i] or words[j] or j < begin + sinks or i - j < window)

    return by_pair(1, queries, len(words), allowed)


def streaming(dense: Sequence[bool], queries: int, keys: int, begin: int, sinks: int, local: int) -> Tensor:
    """dense: [H] heads that see everything."""

    def allowed(h: int, i: int, j: int) -> bool:
        return begin <= j <= i and (dense[h] or j < begin + sinks or i - j < local)

    return by_pair(len(dense), queries, keys, allowed)


def vertical_slash(
    query: Tensor, key: Tensor, begin: int, tile: tuple[int, int],
    *, verticals: int, slashes: int, last: int, sinks: int, local: int, scaling: float | None = None,
) -> Tensor:  # fmt: skip
    """query: [H, Q, Dh]; key: [Hkv, S, Dh]; tile: queries and keys of a block."""
    (heads, queries, width), keys, past = query.shape, key.shape[1], key.shape[1] - query.shape[1]
    groups, factor = heads // key.shape[0], width**-0.5 if scaling is None else scaling
    columns, distances = [], []
    for h in range(heads):
        column = dict.fromkeys(range(begin, keys), 0.0)
        distance = dict.fromkeys(range(keys), 0.0)
        for r in range(max(queries - last, 0), queries):
            i = r + past
            if i < begin:
                continue
            shares = (key[h // groups, begin : i + 1].double() @ query[h, r].double() * factor).softmax(0).tolist()
            for j, share in enumerate(shares, begin):
                column[j] += share
                distance[i - j] += share
        column |= dict.fromkeys(range(begin, min(begin + sinks, keys)), float("inf"))
        distance |= dict.fromkeys(range(min(local, keys)), float("inf"))
        columns.append(_best(column, verticals))
        distances.append(_best(distance, slashes))

    @cache
    def crossed(h: int, top: int, left: int) -> bool:
        rows, shown = range(top, min(top + tile[0], keys)), range(left, min(left + tile[1], keys))
        return any(i - j in distances[h] for i in rows for j in shown)

    def allowed(h: int, i: int, j: int) -> bool:
        if not begin <= j <= i:
            return False
        return j in columns[h] or crossed(h, past + (i - past) // tile[0] * tile[0], j // tile[1] * tile[1])

    return by_pair(heads, queries, keys, allowed)


def top_blocks(
    query: Tensor, key: Tensor, begin: int, tile: tuple[int, int],
    *, count: int | None = None, mass: float | None = None, similarity: float | None = None,
    scaling: float | None = None,
) -> Tensor:  # fmt: skip
    """query: [H, Q, Dh]; key: [Hkv, S, Dh]; tile: queries and keys of a block."""
    (heads, queries, width), keys, past = query.shape, key.shape[1], key.shape[1] - query.shape[1]
    groups, factor = heads // key.shape[0], width**-0.5 if scaling is None else scaling
    starts, blocks = range(past, keys, tile[0]), range(0, keys, tile[1])
    listed: dict[tuple[int, int], set[int]] = {}

    @cache
    def keys_of(head: int, left: int) -> tuple[Tensor, float]:
        return _middle([key[head, j] for j in range(left, min(left + tile[1], keys)) if j >= begin])

    for h, top in itertools.product(range(heads), starts):
        rows = range(top, min(top + tile[0], keys))
        asked, alike = _middle([query[h, i - past] for i in rows if i >= begin])
        scores: dict[int, float] = {}
        mixed, always = set(), set()
        for left in blocks:
            places = range(left, min(left + tile[1], keys))
            if max(places[0], begin) > min(places[-1], rows[-1]):
                continue
            shown, shown_alike = keys_of(h // groups, left)
            scores[left] = float(asked @ shown) * factor
            if similarity is not None and min(alike, shown_alike) < similarity:
                mixed.add(left)
            if begin in places or max(places) >= top:
                always.add(left)
        listed[h, top] = _chosen(scores, always, count, mass) | always | mixed

    def allowed(h: int, i: int, j: int) -> bool:
        top = past + (i - past) // tile[0] * tile[0]
        return begin <= j <= i and j // tile[1] * tile[1] in listed[h, top]

    return by_pair(heads, queries, keys, allowed)


def _chosen(scores: dict[int, float], always: set[int], count: int | None, mass: float | None) -> set[int]:
    ordered = sorted(scores, key=lambda left: (left not in always, -scores[left], left))
    if mass is None:
        return set(ordered[:count])
    weights = torch.tensor([scores[left] for left in ordered], dtype=torch.float64).softmax(0).tolist()
    held, taken = 0.0, set()
    for left, weight in zip(ordered, weights, strict=True):
        if held < mass:
            taken.add(left)
        held += weight
    return taken


def _best(scores: dict[int, float], count: int) -> set[int]:
    return set(sorted(scores, key=lambda place: (-scores[place], place))[:count])


def _middle(states: list[Tensor]) -> tuple[Tensor, float]:
    """Mean of the states, and the mean cosine over all their pairs."""
    if not states:
        return torch.empty(0), 1.0
    stacked = torch.stack(states).double()
    unit = stacked / stacked.norm(dim=1, keepdim=True)
    return stacked.mean(0), float((unit @ unit.T).mean())
