"""How many bits each cache entry gets: by a threshold, or as a knapsack under a budget of bits. 0 bits: evicted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.importance.keep import is_number
from vlm_eff.importance.select import top_k


def threshold_bits(
    scores: Tensor,
    present: Tensor,
    *,
    high: int,
    low: int,
    tau: float | None = None,
    high_share: float | None = None,
) -> Tensor:
    """`high` bits for the entries that score above a threshold, `low` for the others [..., S] int64; 0 where absent.

    scores: [B, S] or [B, Hkv, S]; present: [B, S] or like the scores. Give `tau`, the threshold itself, or
    `high_share`, the fraction [0, 1] of the entries of each row (and head) that is above it, rounded up, ties to the
    lower index. Equation 37 of the survey of efficient VLMs, which calls this VL-Cache; VL-Cache itself evicts.

    Raises:
        ConfigError: not exactly one of `tau` and `high_share`, a share outside [0, 1], or levels that are not whole
            numbers with 0 <= low < high.
    """
    check_levels((low, high))
    if (tau is None) == (high_share is None):
        got = f"tau={tau!r} and high_share={high_share!r}"
        raise ConfigError(explain(got, "exactly one of the two", "Give a threshold or a fraction"))
    present = _like(present, scores)
    if tau is not None:
        above = scores.float() > tau
    else:
        if not is_number(high_share) or not 0 <= (high_share or 0.0) <= 1:
            raise ConfigError(explain(f"high_share={high_share!r}", "a fraction in [0, 1]", "Correct high_share"))
        flat, there = scores.flatten(0, -2), present.flatten(0, -2)
        # a product such as 0.29 * 100 must not end above a whole number by a float's last digit
        count = (there.sum(-1).double() * (high_share or 0.0) - 1e-9).ceil().long()
        above = top_k(flat, count, there).view(scores.shape)
    return torch.where(above, high, low).masked_fill(~present, 0)


def allocate_bits(
    scores: Tensor,
    present: Tensor,
    levels: Sequence[int],
    budget_bits: Tensor | int,
    distortion: Sequence[float] | None = None,
) -> Tensor:
    """Bits of each entry [..., S] int64 that minimise sum score * distortion(bits) under a budget; 0 where absent.

    scores: [B, S] or [B, Hkv, S], at least 0 (less counts as 0); present: [B, S] or like the scores; levels: ascending
    widths such as (0, 2, 4, 8), of which 0 evicts; budget_bits: most the widths of a row's entries may sum to, one
    number or [B], where the heads of a row share it, or [B, Hkv]; distortion: expected error of an entry of score 1 at
    each level, falling; by default 2^(-2 bits), the error of a uniform quantiser relative to that of no bits at all.

    Every entry starts at the lowest level; the steps to the next level of the lower convex hull of (bits, distortion)
    are bought in the order of score * gain for each bit (Lagrangian greedy), ties to the lower step, then to the lower
    index. A step that the rest of the budget cannot pay is left out and with it the further steps of that entry.
    The sum is never above the budget. It is the budget itself, or all entries are at the highest level, where all
    steps are equally wide and divide budget - lowest level * entries; otherwise what is left is less than every step
    that is still open. What was bought before the first step left out is optimal for the bits it takes. Levels above
    the hull are never used. Raising one entry's score never lowers its bits. With two levels it is `threshold_bits`.

    Raises:
        ConfigError: levels or distortions that do not ascend or fall, or a budget below the lowest level for all.
    """
    check_levels(levels)
    present = _like(present, scores)
    shape = scores.shape
    budget = torch.as_tensor(budget_bits, device=scores.device).long()
    # heads compete for the budget of their row unless each has its own
    rows = shape[0] if budget.dim() < 2 else shape[0] * shape[1]
    flat, there = scores.reshape(rows, -1), present.reshape(rows, -1)
    left = budget.expand(shape[0]).clone() if budget.dim() < 2 else budget.expand(shape[:2]).flatten().clone()
    left -= there.sum(1) * levels[0]
    if bool((left < 0).any()):
        got = f"a budget of {budget.tolist()} bits for {there.sum(1).tolist()} entries"
        raise ConfigError(explain(got, f"at least {levels[0]} for each entry", "Raise the budget or add level 0"))
    hull = _hull(levels, _errors(levels, distortion))
    taken = _buy(flat, there, hull, left)
    widths = torch.tensor([bits for bits, _ in hull], device=scores.device)
    return widths[taken].masked_fill(~there, 0).view(shape)


def _buy(scores: Tensor, there: Tensor, hull: list[tuple[int, float]], left: Tensor) -> Tensor:
    """Steps bought for each entry [B, S]: a walk over all steps in order of gain, of which most is one running sum."""
    bought = torch.zeros_like(there, dtype=torch.long)
    steps, width = len(hull) - 1, scores.shape[1]
    if not steps or not width:
        return bought
    wide = [above[0] - below[0] for below, above in pairwise(hull)]
    gains = [(below[1] - above[1]) / w for (below, above), w in zip(pairwise(hull), wide, strict=True)]
    worth = scores.double().clamp(min=0)
    # a step lies at (its number, its entry): of equal ones the lower step comes first, then the lower entry
    priority = torch.cat([worth * gain for gain in gains], 1)
    order = priority.argsort(dim=1, descending=True, stable=True)
    entry, step = order % width, order // width
    real = there.gather(1, entry)
    cost = torch.tensor(wide, device=scores.device)[step].masked_fill(~real, 0)
    paid = (cost.cumsum(1) <= left[:, None]) & real
    bought.scatter_add_(1, entry, paid.long())
    left = left - (cost * paid).sum(1)
    # past the first step that is too dear, cheaper ones may still fit: few, because each of them makes the rest less
    while True:
        fits = real & (bought.gather(1, entry) == step) & (cost <= left[:, None])
        again = fits.any(1)
        if not bool(again.any()):
            return bought
        first = fits.to(torch.int8).argmax(1, keepdim=True)
        bought.scatter_add_(1, entry.gather(1, first), again[:, None].long())
        left = left - torch.where(again, cost.gather(1, first)[:, 0], 0)


def _hull(levels: Sequence[int], errors: Sequence[float]) -> list[tuple[int, float]]:
    """The (bits, distortion) on the lower convex hull: those from which each further bit gains less than the last."""
    made: list[tuple[int, float]] = []
    for point in zip(levels, errors, strict=True):
        while len(made) > 1 and _gain(made[-2], made[-1]) <= _gain(made[-1], point):
            made.pop()
        made.append(point)
    return made


def _gain(below: tuple[int, float], above: tuple[int, float]) -> float:
    return (below[1] - above[1]) / (above[0] - below[0])


def _errors(levels: Sequence[int], distortion: Sequence[float] | None) -> list[float]:
    errors = [2.0 ** (-2 * bits) for bits in levels] if distortion is None else [float(error) for error in distortion]
    falling = all(math.isfinite(error) for error in errors) and all(below > above for below, above in pairwise(errors))
    if len(errors) != len(levels) or not falling:
        got = f"distortion={distortion!r} for levels {tuple(levels)}"
        raise ConfigError(explain(got, "one finite number a level, each less than the one before", "Correct it"))
    return errors


def check_levels(levels: Sequence[int]) -> None:
    """Raise `ConfigError` unless `levels` are whole numbers of at least 0, ascending."""
    whole = all(isinstance(bits, int) and not isinstance(bits, bool) and bits >= 0 for bits in levels)
    rising = whole and all(below < above for below, above in pairwise(levels))
    if not levels or not rising:
        raise ConfigError(
            explain(f"levels {tuple(levels)!r}", "whole numbers of at least 0, ascending", "Order the levels")
        )


def _like(present: Tensor, scores: Tensor) -> Tensor:
    return present if present.dim() == scores.dim() else present[:, None].expand_as(scores)
