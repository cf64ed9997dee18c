"""Definitions of the methods whose layers or heads keep different numbers, for `kv_promises.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from tests.contracts import kit, kv_kit
from tests.contracts.definitions import best
from tests.contracts.kv_definitions import Kept, Sets, window_mass
from tests.oracle import attention_rows
from tests.tiny import TinyInputs, visual_mask

Counts = Callable[[list[Tensor], list[int], list[int], int], list[float]]
"""(attention of each layer [H, S, S], real places, visual places, mean entries of a layer) -> weights of the layers"""
Scores = Callable[[Tensor, list[int], list[int]], list[float]]
"""(attention [n, S, S], real places, visual places) -> a score of each place"""


def shared_out(weights: list[float], total: int, low: int, high: int) -> list[int]:
    """Whole numbers in [low, high] by weights, whose sum is `total`: a scale found by halving, largest remainders."""
    few, many = 0.0, 1e9
    for _ in range(400):
        scale = (few + many) / 2
        spent = sum(min(max(scale * weight, low), high) for weight in weights)
        few, many = (scale, many) if spent < total else (few, scale)
    quotas = [round(min(max(many * weight, low), high), 7) for weight in weights]
    made = [math.floor(quota) for quota in quotas]
    order = sorted(range(len(made)), key=lambda index: (round(made[index] - quotas[index], 6), index))
    for index in order[: total - sum(made)]:
        made[index] += 1
    return made


def by_layer(
    weights: Counts,
    score: Scores,
    budget: Callable[[int], int],
    protected: Callable[[int], tuple[int, int]],
    together: bool,
) -> Kept:
    """Layers share the budget by weights; `protected`: entries of a layer -> first and last ones that stay.

    together: all heads of a layer keep the same
    """

    def kept(model: Any, inputs: TinyInputs) -> Sets:
        made: Sets = {}
        heads = model.config.get_text_config().num_key_value_heads
        attention = [attention_rows(model, inputs, layer).double() for layer in range(kit.LAYERS)]
        for index in range(len(inputs["input_ids"])):
            places = kv_kit.real_places(inputs, index)
            visual = visual_mask(inputs)[index].nonzero()[:, 0].tolist()
            mean = budget(len(places))
            shares = weights([layer[index] for layer in attention], places, visual, mean)
            least = min(sum(protected(0)), len(places), mean)
            counts = shared_out(shares, mean * kit.LAYERS, least, len(places))
            for layer, count in enumerate(counts):
                row = attention[layer][index]
                groups = [row] * heads if together else list(row.chunk(heads, 0))
                for head, group in enumerate(groups):
                    first, last = protected(count)
                    ends = [seat for seat in range(len(places)) if seat < first or seat >= len(places) - last]
                    middle = [seat for seat in range(len(places)) if seat not in set(ends)]
                    scores = score(group, places, visual)
                    chosen = best([scores[seat] for seat in middle], max(count - len(ends), 0))
                    made[layer, index, head] = sorted(places[seat] for seat in ends + [middle[i] for i in chosen])
        return made

    return kept


def pyramid(window: int, beta: int) -> Counts:
    """PyramidKV's fall, before rounding."""

    def weights(attention: list[Tensor], places: list[int], visual: list[int], mean: int) -> list[float]:
        free, room = mean - window, len(places) - window
        if len(places) <= mean or free <= 0:
            return [1.0] * len(attention)
        most = min(2 * free - free // beta, room)
        least = 2 * free - most
        return [most - layer * (most - least) / (len(attention) - 1) + window for layer in range(len(attention))]

    return weights


def pooled_window(window: int, pool: int) -> Scores:
    """SnapKV's score."""
    return lambda group, places, visual: window_mass(window, pool)(group, places)


def behind(places: list[int], visual: list[int]) -> list[int]:
    """VL-Cache's rows: what stands behind the last visual token; behind none of it the last 32."""
    found = [place for place in places if not visual or place > visual[-1]]
    return found or places[-32:]


def dense(threshold: float) -> Counts:
    """VL-Cache: 1 - the share of weights that are next to nothing; a hundredth of the prompt at least."""

    def weights(attention: list[Tensor], places: list[int], visual: list[int], mean: int) -> list[float]:
        made = []
        for layer in attention:
            empty = pairs = 0
            for head in layer:
                for row in behind(places, visual):
                    seen = [float(head[row, place]) for place in places if place <= row]
                    empty += sum(weight < threshold * max(seen) for weight in seen)
                    pairs += len(seen)
            made.append(1 - empty / pairs)
        low = min(math.ceil(0.01 * len(places)), mean)
        return [float(one) for one in shared_out(made, mean * len(attention), low, len(places))]

    return weights


def behind_mass(group: Tensor, places: list[int], visual: list[int]) -> list[float]:
    """VL-Cache: what those rows give."""
    return group[:, behind(places, visual)][:, :, places].sum((0, 1)).tolist()


def all_mass(group: Tensor, places: list[int], visual: list[int]) -> list[float]:
    """PrefixKV: what all rows give."""
    return group[:, places][:, :, places].sum((0, 1)).tolist()


def common(attention: list[Tensor], places: list[int], visual: list[int], mean: int) -> list[float]:
    """PrefixKV: the entries with the least mass before them in their layer, as many as there are in all."""
    queue = []
    for layer, heads in enumerate(attention):
        masses = sorted(all_mass(heads, places, visual), reverse=True)
        queue += [(round(sum(masses[:rank]) / sum(masses), 6), rank, layer) for rank in range(len(masses))]
    taken = [layer for _, _, layer in sorted(queue)[: mean * len(attention)]]
    return [float(taken.count(layer)) for layer in range(len(attention))]


def across_heads(window: int, pool: int, floor: float, budget: Callable[[int], int]) -> Kept:
    """AdaKV: the best of all heads of a layer say how many each keeps."""

    def kept(model: Any, inputs: TinyInputs) -> Sets:
        made: Sets = {}
        heads = model.config.get_text_config().num_key_value_heads
        for layer in range(kit.LAYERS):
            for index, row in enumerate(attention_rows(model, inputs, layer).double()):
                places = kv_kit.real_places(inputs, index)
                base = max(min(budget(len(places)), len(places)) - window, 0)
                scores = [_highest(group, places, window, pool) for group in row.chunk(heads, 0)]
                seats = range(len(scores[0]))
                order = sorted((-scores[head][seat], seat, head) for head in range(heads) for seat in seats)
                won = [head for _, _, head in order[: base * heads]]
                quotas = [(1 - floor) * won.count(head) + floor * base for head in range(heads)]
                counts = _rounded(quotas, min(base * heads, len(order)))
                for head, count in enumerate(counts):
                    chosen = best(scores[head], count)
                    made[layer, index, head] = sorted([*(places[seat] for seat in chosen), *places[len(scores[0]) :]])
        return made

    return kept


def _highest(group: Tensor, places: list[int], window: int, pool: int) -> list[float]:
    """The largest sum of a place's neighbours before the window."""
    count = max(len(places) - window, 0)
    raw = group[:, places[-window:]][:, :, places].sum((0, 1))[:count]
    reach = pool // 2
    return [float(raw[max(seat - reach, 0) : seat + reach + 1].max()) for seat in range(count)]


def _rounded(quotas: list[float], total: int) -> list[int]:
    made = [math.floor(quota + 1e-9) for quota in quotas]
    order = sorted(range(len(made)), key=lambda index: (round(made[index] - quotas[index], 6), index))
    for index in order[: total - sum(made)]:
        made[index] += 1
    return made
