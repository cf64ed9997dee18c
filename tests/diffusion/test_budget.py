"""Choosing steps: against trying all of them."""

from __future__ import annotations

import itertools
import random

import pytest

from vlm_eff.core.errors import InputError
from vlm_eff.diffusion import budget
from vlm_eff.diffusion.budget import affordable, best_steps, climb


def table(count: int, seed: int) -> dict[tuple[int | None, int, int], float]:
    rng = random.Random(seed)
    places = [None, *range(count)]
    return {(b, a, u): rng.random() for b in places for a in range(count) for u in range(count + 1)}


def total(costs: dict[tuple[int | None, int, int], float], steps: tuple[int, ...], count: int, pairs: bool) -> float:
    ends = [*steps[1:], count]
    before = [None, *steps[:-1]] if pairs else [None] * len(steps)
    return sum(costs[b, a, u] for b, a, u in zip(before, steps, ends, strict=True))


def is_best(count: int, pairs: bool, warm_up: int = 1, cool_down: int = 0) -> None:
    for seed in range(4):
        costs = table(count, seed)
        must = {*range(warm_up), *range(count - cool_down, count)}
        for evaluations in range(max(len(must), 1), count + 1):
            got = best_steps(
                lambda b, a, u: costs[b, a, u],  # noqa: B023
                count,
                evaluations,
                warm_up=warm_up,
                cool_down=cool_down,
                pairs=pairs,
            )
            assert len(got) == evaluations and must <= set(got)
            every = [s for s in itertools.combinations(range(count), evaluations) if must | {0} <= set(s)]
            assert total(costs, got, count, pairs) == min(total(costs, s, count, pairs) for s in every)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize(("warm_up", "cool_down"), [(1, 0), (2, 1), (1, 3)])
def test_the_best_of_all(pairs: bool, warm_up: int, cool_down: int) -> None:
    is_best(7, pairs, warm_up, cool_down)


def test_the_last_two_matter_to_forecasts() -> None:
    # costs that look at the step before the last are not solved by remembering the last alone
    count, costs = 6, table(6, 9)
    alone = best_steps(lambda b, a, u: costs[b, a, u], count, 3)
    both = best_steps(lambda b, a, u: costs[b, a, u], count, 3, pairs=True)
    assert total(costs, both, count, True) <= total(costs, alone, count, True)


def test_a_sum_that_forgets_the_end_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = budget.best_steps

    def forgets(cost: budget.Cost, count: int, evaluations: int, **more: object) -> tuple[int, ...]:
        return real(lambda b, a, u: 0.0 if u == count else cost(b, a, u), count, evaluations, **more)  # type: ignore[arg-type]

    monkeypatch.setitem(globals(), "best_steps", forgets)
    with pytest.raises(AssertionError):
        is_best(7, False)


def test_climbing_goes_down_and_never_up() -> None:
    seen = []

    def error(steps: tuple[int, ...]) -> float:
        seen.append(steps)
        return float(sum((s - want) ** 2 for s, want in zip(steps, (0, 5, 7), strict=True)))

    assert climb((0, 1, 2), error, 12, trials=200) == (0, 5, 7)
    assert all(len(set(steps)) == 3 and steps[0] == 0 and max(steps) < 12 for steps in seen)
    seen.clear()
    assert climb((0, 1, 2), error, 12, trials=0) == (0, 1, 2)
    seen.clear()
    climb((0, 1, 2), error, 12, trials=5)
    assert len(seen) <= 6
    assert climb((0, 5, 7), error, 12, trials=50) == (0, 5, 7)


def test_time_is_translated() -> None:
    # of 10 steps, one computed and nine skipped take 2 of 10 seconds: each computed one costs 8/9 s more
    assert affordable(1.0, 10.0, 2.0, 10, 1) == 10
    assert affordable(0.2, 10.0, 2.0, 10, 1) == 1
    assert affordable(0.5, 10.0, 2.0, 10, 1) == 4
    with pytest.raises(InputError, match=r"0\.20"):
        affordable(0.1, 10.0, 2.0, 10, 1)
    with pytest.raises(InputError):
        affordable(0.5, 10.0, 10.5, 10, 1)


def test_budgets_that_cannot_be_kept() -> None:
    for evaluations in (0, 9, 2.5):
        with pytest.raises(InputError, match="evaluations"):
            best_steps(lambda b, a, u: 0.0, 8, evaluations)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        best_steps(lambda b, a, u: 0.0, 8, 2, warm_up=3)
