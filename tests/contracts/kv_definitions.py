"""Kept entries of the methods written down a second time, from eager attention weights and places alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tests.contracts import kit, kv_kit
from tests.contracts.definitions import best
from tests.oracle import attention_rows
from tests.tiny import TinyInputs

Sets = dict[tuple[int, int, int], list[int]]
"""(layer, row, head) -> positions kept, ascending"""
Kept = Callable[[Any, TinyInputs], Sets]
Scores = Callable[[Tensor, list[int]], list[float]]
"""(attention [n, S, S] of a group's query heads in float64, real places of the row) -> a score for each place"""


def every_head(model: Any, inputs: TinyInputs, choose: Callable[[Tensor, list[int]], list[int]]) -> Sets:
    """`choose` from the attention of each group of query heads."""
    made: Sets = {}
    for layer in range(kit.LAYERS):
        weights = attention_rows(model, inputs, layer).double()
        heads = model.config.get_text_config().num_key_value_heads
        for index, row in enumerate(weights):
            for head, group in enumerate(row.chunk(heads, 0)):
                made[layer, index, head] = choose(group, kv_kit.real_places(inputs, index))
    return made


def ranked(score: Scores, budget: Callable[[int], int], first: int = 0, last: int = 0) -> Kept:
    """The best by `score`, beside the first and last entries of a row, which count."""

    def choose(group: Tensor, places: list[int]) -> list[int]:
        count = len(places)
        ends = [seat for seat in range(count) if seat < first or seat >= count - last]
        middle = [seat for seat in range(count) if first <= seat < count - last]
        scores = score(group, places)
        left = min(max(budget(count) - len(ends), 0), len(middle))
        chosen = [middle[seat] for seat in best([scores[seat] for seat in middle], left)]
        return [places[seat] for seat in sorted(ends + chosen)]

    return lambda model, inputs: every_head(model, inputs, choose)


def window_mass(window: int, pool: int = 1) -> Scores:
    """Attention of the last `window` rows, mean over rows and heads, averaged over `pool` places before the window."""

    def score(group: Tensor, places: list[int]) -> list[float]:
        rows = group[:, places[-window:]][:, :, places].mean((0, 1))
        before = rows[: len(places) - window] if len(places) > window else rows[:0]
        reach = pool // 2
        pooled = [sum(before[max(seat - reach, 0) : seat + reach + 1].tolist()) / pool for seat in range(len(before))]
        return pooled + rows[len(before) :].tolist()

    return score


def newest(group: Tensor, places: list[int]) -> list[float]:
    """The later, the better."""
    return [float(seat) for seat in range(len(places))]
