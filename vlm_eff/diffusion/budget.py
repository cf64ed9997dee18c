"""Which steps of a run to compute when only so many may be: proposed by dynamic programming, settled by trying."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

from vlm_eff.core.errors import InputError, explain

# cost(before, at, until): error of the steps between `at` and `until`, predicted from what was computed at these two
Cost = Callable[[int | None, int, int], float]


def best_steps(
    cost: Cost, count: int, evaluations: int, *, warm_up: int = 1, cool_down: int = 0, pairs: bool = False
) -> tuple[int, ...]:
    """The `evaluations` steps of 0 to count - 1 that cost least in sum, by dynamic programming.

    warm_up, cool_down: steps at the beginning and the end that are computed in any case
    pairs:              the cost depends on the last two computed steps (forecasts), not on the last alone

    evaluations * count^2 values of `cost` at most, times count with `pairs`.

    Raises:
        InputError: fewer evaluations than must be computed, or more than there are steps.
    """
    must = fixed_steps(count, warm_up, cool_down)
    check_evaluations(evaluations, count, len(must))
    # best way to have computed so many steps, the last two of which are the key
    best: dict[tuple[int | None, int], tuple[float, tuple[int, ...]]] = {(None, 0): (0.0, (0,))}
    for _ in range(evaluations - 1):
        longer: dict[tuple[int | None, int], tuple[float, tuple[int, ...]]] = {}
        for (before, at), (spent, steps) in best.items():
            for until in range(at + 1, count):
                total = spent + cost(before, at, until)
                key = (at if pairs else None, until)
                if key not in longer or total < longer[key][0]:
                    longer[key] = (total, (*steps, until))
                if until in must:
                    break
        best = longer
    ends = [
        (spent + cost(before, at, count), steps)
        for (before, at), (spent, steps) in best.items()
        if not any(step > at for step in must)
    ]
    return min(ends)[1]


def climb(
    start: tuple[int, ...],
    error: Callable[[tuple[int, ...]], float],
    count: int,
    *,
    fixed: frozenset[int] = frozenset({0}),
    trials: int = 16,
    seed: int = 0,
) -> tuple[int, ...]:
    """Move single steps by one or two places for as long as `error` falls; never worse than `start`.

    trials: how many neighbours are tried at most; seed: of the order in which they are
    """
    order = random.Random(seed)
    best, least, seen = start, error(start), {start}
    better = True
    while better and trials > 0:
        better = False
        near = [steps for steps in _neighbours(best, count, fixed) if steps not in seen]
        order.shuffle(near)
        for steps in near[:trials]:
            trials -= 1
            seen.add(steps)
            value = error(steps)
            if value < least:
                best, least, better = steps, value, True
                break
    return best


def _neighbours(steps: tuple[int, ...], count: int, fixed: frozenset[int]) -> Iterator[tuple[int, ...]]:
    for step in steps:
        if step in fixed:
            continue
        for moved in (step - 2, step - 1, step + 1, step + 2):
            if 0 < moved < count and moved not in steps:
                yield tuple(sorted({*steps, moved} - {step}))


def fixed_steps(count: int, warm_up: int, cool_down: int) -> frozenset[int]:
    """Steps that are computed in any case."""
    return frozenset(range(min(max(warm_up, 1), count))) | frozenset(range(max(count - cool_down, 0), count))


def affordable(ratio: float, whole: float, least: float, count: int, fixed: int) -> int:
    """How many steps may be computed in `ratio` of a bare run's time.

    whole: seconds of a run that computes all `count` steps      least: of one that computes only the `fixed` ones

    Raises:
        InputError: not even the fixed ones fit.
    """
    each = (whole - least) / max(count - fixed, 1)
    wanted = count if each <= 0 else fixed + math.floor((ratio * whole - least) / each + 1e-9)
    if wanted < fixed or (each <= 0 and ratio < 1):
        raise InputError(
            explain(
                f"time_ratio={ratio} where a run that skips all it may takes {least / whole:.2f} of the time",
                f"{max(least / whole, 0.0):.2f} to 1",
                "Allow more time, or skip more at a step (a smaller branch, forecast())",
            )
        )
    return min(wanted, count)


def check_evaluations(evaluations: int, count: int, least: int) -> None:
    """Raise `InputError` unless so many of `count` steps can be computed."""
    if not isinstance(evaluations, int) or not least <= evaluations <= count:
        raise InputError(
            explain(
                f"evaluations={evaluations!r} of {count} steps",
                f"a whole number from {least} (the steps that are always computed) to {count}",
                "Correct the budget",
            )
        )
