"""Definitions of methods that evict by attention, for `kv_promises.py`: plain loops over eager attention weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tests.contracts import kit, kv_kit
from tests.contracts.definitions import best
from tests.contracts.kv_definitions import Kept, Sets
from tests.oracle import attention_rows
from tests.tiny import TinyInputs


def mass_of_all(normalise: str = "none") -> Callable[[Tensor, list[int]], list[float]]:
    """H2O: what an entry gets from every query that may look at it."""

    def score(group: Tensor, places: list[int]) -> list[float]:
        made = []
        for seat, place in enumerate(places):
            later = places[seat:]
            long = [1.0 if normalise != "length" else row + 1.0 for row in range(seat, len(places))]
            got = sum(float(group[:, row, place].sum()) * size for row, size in zip(later, long, strict=True))
            made.append(got / (1 if normalise == "none" else len(later)))
        return made

    return score


def reads(window: int) -> Callable[[Tensor, list[int]], list[float]]:
    """Scissorhands: minus how many of the last queries, over all heads of a group, gave less than an even share."""

    def score(group: Tensor, places: list[int]) -> list[float]:
        even = 1 / len(places)
        rows = places[-window:]
        return [
            -float(sum(float(head[row, place]) < even - 1e-6 for head in group for row in rows if row >= place))
            for place in places
        ]

    return score


def shared(score: Callable[[Tensor, list[int]], list[float]], budget: Callable[[int], int], last: int) -> Kept:
    """The best by a score of all heads of a layer together, and the last entries; every head keeps the same."""

    def kept(model: Any, inputs: TinyInputs) -> Sets:
        made: Sets = {}
        heads = model.config.get_text_config().num_key_value_heads
        for layer in range(kit.LAYERS):
            for index, row in enumerate(attention_rows(model, inputs, layer).double()):
                places = kv_kit.real_places(inputs, index)
                middle = len(places) - last
                left = min(max(budget(len(places)) - last, 0), middle)
                chosen = best(score(row, places)[:middle], left)
                stays = sorted([*(places[seat] for seat in chosen), *places[middle:]])
                made.update({(layer, index, head): stays for head in range(heads)})
        return made

    return kept


def last_row(heads: Tensor, places: list[int]) -> list[float]:
    """TOVA: what the last query gives, mean over heads."""
    return [float(heads[:, places[-1], place].mean()) for place in places]
