"""How many tokens a row needs, from its scores: mass, outliers, thresholds, curves over layers; and how one budget is
shared out. Every rule looks at one row alone; none at its neighbours in the batch or at padding."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

# a sum of shares must not miss its goal by a float's last digit
_SLACK = 1e-12


def mass_count(scores: Tensor, mass: float, valid: Tensor) -> Tensor:
    """Smallest p such that the p highest scores hold at least `mass` of the row's sum [B] (top-p).

    scores: [B, V] non-negative; mass: fraction (0, 1], where 1 means all tokens; valid: [B, V]. At least 1 where a row
    has tokens; a row whose scores are all 0 is taken as uniform. Sums are float64.
    """
    if mass >= 1:
        return valid.sum(1)
    share = shares(scores, valid)
    ordered = share.sort(dim=1, descending=True).values
    before = ordered.cumsum(1) - ordered
    count = valid.sum(1)
    return torch.minimum((before < mass - _SLACK).sum(1), count).clamp(min=1).minimum(count)


def shares(scores: Tensor, valid: Tensor) -> Tensor:
    """Each score's share of its row's sum [B, V] float64; uniform where all are 0."""
    scores = scores.double().masked_fill(~valid, 0.0)
    total = scores.sum(1, keepdim=True)
    return torch.where(total > 0, scores / total.clamp(min=1e-300), valid / valid.sum(1, keepdim=True).clamp(min=1))


def outlier_count(scores: Tensor, factor: float, valid: Tensor) -> Tensor:
    """Scores above the upper fence Q3 + `factor` * (Q3 - Q1) of their row [B]; may be 0 (LLaVA-PruMerge, TRIM)."""
    lower, upper = quantile(scores, 0.25, valid), quantile(scores, 0.75, valid)
    return threshold_count(scores, upper + factor * (upper - lower), valid)


def threshold_count(scores: Tensor, threshold: Tensor, valid: Tensor) -> Tensor:
    """Scores above the `threshold` [B] of their row [B]; may be 0."""
    return ((scores.double() > threshold[:, None]) & valid).sum(1)


def deviation(scores: Tensor, kappa: float, valid: Tensor) -> Tensor:
    """Mean + `kappa` standard deviations of each row's scores [B] float64 (of the population, not of a sample)."""
    count = valid.sum(1).clamp(min=1)
    scores = scores.double().masked_fill(~valid, 0.0)
    mean = scores.sum(1) / count
    spread = (scores - mean[:, None]).masked_fill(~valid, 0.0).square().sum(1) / count
    return mean + kappa * spread.sqrt()


def quantile(scores: Tensor, q: float, valid: Tensor) -> Tensor:
    """The value below which a fraction `q` of each row's scores lies [B] float64; linear between two, as NumPy does.

    0 for a row without tokens.
    """
    ordered = scores.double().masked_fill(~valid, torch.inf).sort(dim=1).values
    place = q * (valid.sum(1) - 1).clamp(min=0).double()
    low = place.floor().long()
    high = place.ceil().long()
    if not ordered.shape[1]:
        return place * 0
    first, second = (ordered.gather(1, at[:, None])[:, 0] for at in (low, high))
    made = first + (second - first) * (place - low)
    return torch.where(valid.any(1), made, 0.0).nan_to_num(0.0)


def logistic_curve(
    places: Sequence[float], mean: float, slope: float, middle: float, lasts: Sequence[float] | None = None
) -> list[float]:
    """Fractions kept at `places` of the decoder: a falling logistic with a given mean.

    The shape is 1 / (1 + exp(slope * (place - middle))); it is scaled, and cut off at 1, until its mean over the places
    is `mean` (AutoPrune's curve, whose scale is found by bisection as well). lasts: weight of each place in the mean,
    such as the part of the decoder for which it holds; default all equal.
    """
    weights = list(lasts) if lasts is not None else [1.0] * len(places)
    shape = [1 / (1 + math.exp(min(slope * (place - middle), 700))) for place in places]
    low, high = 0.0, 1 / min(shape)
    for _ in range(100):
        scale = (low + high) / 2
        reached = sum(w * min(1.0, scale * value) for w, value in zip(weights, shape, strict=True)) / sum(weights)
        low, high = (scale, high) if reached < mean else (low, scale)
    return [min(1.0, high * value) for value in shape]


def apportion(weights: Tensor, total: Tensor, cap: Tensor, floor: int = 0) -> Tensor:
    """Share `total` [B] tokens among the groups of each row by `weights` [B, G] -> whole numbers [B, G].

    Each group gets the quota proportional to its weight, but at least `floor` and at most `cap` [B, G]; what a bound
    takes or leaves is shared among the others. Quotas are rounded by largest remainder, ties to the lower index, so
    that the sum is exactly the smaller one of total and capacity. Where the total cannot pay every floor, all get as
    near to theirs as it goes. Arithmetic is exact, on the host.
    """
    rows = zip(weights.double().tolist(), total.tolist(), cap.tolist(), strict=True)
    made = [share_out(weight, int(seats), limit, floor) for weight, seats, limit in rows]
    return torch.tensor(made, dtype=torch.long, device=weights.device).view(cap.shape)


def share_out(weights: Sequence[float], total: int, cap: Sequence[int], floor: int | Sequence[int] = 0) -> list[int]:
    """`apportion` for one row; `floor` may be a number for each group."""
    total = min(total, sum(cap))
    least = [floor] * len(cap) if isinstance(floor, int) else floor
    low = [min(bound, limit) for bound, limit in zip(least, cap, strict=True)]
    if total <= sum(low):
        # equal weights under the floors themselves as caps: nobody is far from the floor while another is at it
        return _rounded(_quotas([Fraction(1)] * len(cap), total, [0] * len(cap), low), total)
    heavy = [Fraction(max(weight, 0.0)) for weight in weights]
    reach = sum(limit if weight else bound for weight, limit, bound in zip(heavy, cap, low, strict=True))
    if reach < total:
        # even with all the others full there is something left: groups of weight 0 share it evenly
        light = [Fraction(not weight) for weight in heavy]
        low = [bound if extra else limit for extra, limit, bound in zip(light, cap, low, strict=True)]
        heavy = light
    return _rounded(_quotas(heavy, total, low, list(cap)), total)


def _quotas(weights: list[Fraction], total: int, low: list[int], high: list[int]) -> list[Fraction]:
    """min(high, max(low, scale * weight)) with the scale whose sum is `total`: exact, from the bounds' own scales."""

    def at(scale: Fraction) -> list[Fraction]:
        return [min(Fraction(b), max(Fraction(a), scale * w)) for w, a, b in zip(weights, low, high, strict=True)]

    bounded = zip(weights, low, high, strict=True)
    turns = sorted({Fraction(bound) / weight for weight, *both in bounded if weight for bound in both})
    # the sum only grows with the scale: find the stretch between two bounds in which the total lies
    after = bisect_left(turns, Fraction(total), key=lambda turn: sum(at(turn), Fraction(0)))
    below = turns[after - 1] if after else Fraction(0)
    if after == len(turns):
        return at(below)
    first, second = (sum(at(scale), Fraction(0)) for scale in (below, turns[after]))
    part = (total - first) / (second - first) if second > first else Fraction(0)
    return at(below + (turns[after] - below) * part)


def _rounded(quotas: list[Fraction], total: int) -> list[int]:
    made = [math.floor(quota) for quota in quotas]
    order = sorted(range(len(quotas)), key=lambda group: (made[group] - quotas[group], group))
    for group in order[: total - sum(made)]:
        made[group] += 1
    return made
