"""Counts that follow from the scores, and shares of a budget, against exact arithmetic."""

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from vlm_eff.importance.adaptive import (
    apportion,
    deviation,
    logistic_curve,
    mass_count,
    outlier_count,
    quantile,
    share_out,
    threshold_count,
)

SEEDS = range(8)


def scores(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = torch.rand(4, 12, generator=generator).pow(6)
    valid = torch.rand(4, 12, generator=generator) < 0.8
    valid[0], valid[3] = True, False
    # what does not exist must not count, whatever it holds
    return torch.where(valid, made, 1e6), valid


@pytest.mark.parametrize("mass", [0.01, 0.3, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_mass_is_reached_by_as_few_as_can_be(seed: int, mass: float) -> None:
    made, valid = scores(seed)
    for row, count in enumerate(mass_count(made, mass, valid).tolist()):
        best = sorted((Fraction(value) for value in made[row][valid[row]].tolist()), reverse=True)
        enough = [p for p in range(len(best) + 1) if sum(best[:p]) >= Fraction(mass) * sum(best)]
        assert count == (len(best) if mass == 1 else max(1, min(enough)) if best else 0)


def test_mass_of_equal_scores_is_a_ratio() -> None:
    made, every = torch.full((1, 10), 0.1), torch.ones(1, 10, dtype=torch.bool)
    assert [int(mass_count(made, tenth / 10, every)) for tenth in range(1, 11)] == list(range(1, 11))
    # nothing to tell them apart: as if uniform
    assert int(mass_count(made * 0, 0.5, every)) == 5


@pytest.mark.parametrize("q", [0, 0.25, 0.4, 0.75, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_quantiles_are_those_of_numpy(seed: int, q: float) -> None:
    made, valid = scores(seed)
    for row, got in enumerate(quantile(made, q, valid).tolist()):
        values = made[row][valid[row]].double().numpy()
        assert got == pytest.approx(np.quantile(values, q) if len(values) else 0, abs=1e-12)


def test_outliers_lie_above_the_upper_fence() -> None:
    # quartiles 3.25 and 7.75: the fence of 1.5 is 14.5, that of 3 is 21.25
    made = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8, 15, 30, 99]])
    valid = torch.tensor([[True] * 10 + [False]])
    assert quantile(made, 0.25, valid).tolist() == [3.25]
    assert outlier_count(made, 1.5, valid).tolist() == [2]
    assert outlier_count(made, 3.0, valid).tolist() == [1]
    assert outlier_count(torch.ones(1, 11), 1.5, valid).tolist() == [0]


@pytest.mark.parametrize("seed", SEEDS)
def test_thresholds_are_mean_and_deviation_of_the_row(seed: int) -> None:
    made, valid = scores(seed)
    last = None
    for kappa in (-2.0, -0.5, 0.0, 1.0, 3.0):
        limit = deviation(made, kappa, valid)
        count = threshold_count(made, limit, valid)
        for row in range(3):
            values = made[row][valid[row]].double().numpy()
            assert float(limit[row]) == pytest.approx(values.mean() + kappa * values.std())
            assert int(count[row]) == (values > values.mean() + kappa * values.std()).sum()
        assert last is None or bool((count <= last).all())
        last = count


@pytest.mark.parametrize("mean", [0.05, 0.3, 0.75, 1.0])
def test_a_curve_falls_and_has_its_mean(mean: float) -> None:
    made = logistic_curve(range(32), mean, slope=0.4, middle=14.9)
    assert sum(made) / 32 == pytest.approx(mean)
    assert made == sorted(made, reverse=True)
    assert min(made) > 0 and max(made) <= 1
    if mean < 0.4:
        assert made[20] / made[10] == pytest.approx((1 + np.exp(0.4 * -4.9)) / (1 + np.exp(0.4 * 5.1)))


def test_a_flat_curve_is_the_ratio() -> None:
    assert logistic_curve(range(6), 0.25, slope=0, middle=3) == pytest.approx([0.25] * 6)


def test_the_mean_counts_how_long_a_place_lasts() -> None:
    made = logistic_curve((0.25, 0.5, 0.9), 0.4, slope=9, middle=0.5, lasts=(0.25, 0.4, 0.1))
    assert made[0] * 0.25 + made[1] * 0.4 + made[2] * 0.1 == pytest.approx(0.4 * 0.75)


@pytest.mark.parametrize("seed", SEEDS)
def test_shares_sum_to_the_total_and_keep_their_bounds(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(40):
        groups = chance.randint(1, 6)
        weights = [chance.choice([0.0, 0.0, 1.0, chance.random()]) for _ in range(groups)]
        cap = [chance.randint(0, 9) for _ in range(groups)]
        total, floor = chance.randint(0, 40), chance.randint(0, 3)
        made = share_out(weights, total, cap, floor)
        assert sum(made) == min(total, sum(cap))
        assert all(0 <= got <= limit for got, limit in zip(made, cap, strict=True))
        if total >= sum(min(floor, limit) for limit in cap):
            assert all(got >= min(floor, limit) for got, limit in zip(made, cap, strict=True))


@pytest.mark.parametrize("seed", SEEDS)
def test_largest_remainders_are_the_nearest_whole_numbers(seed: int) -> None:
    """Without bounds, no other whole shares of the total are nearer to the quotas."""
    chance = random.Random(seed)
    weights, total = [chance.random() for _ in range(4)], 11
    quotas = [total * weight / sum(weights) for weight in weights]

    def off(shares: tuple[int, ...] | list[int]) -> float:
        return sum((got - quota) ** 2 for got, quota in zip(shares, quotas, strict=True))

    best = min((s for s in itertools.product(range(12), repeat=4) if sum(s) == total), key=off)
    assert share_out(weights, total, [11] * 4) == list(best)


def test_shares_worked_out_by_hand() -> None:
    assert share_out([1, 1, 1], 10, [9, 9, 9]) == [4, 3, 3]
    assert share_out([5, 3, 2], 10, [9, 9, 9]) == [5, 3, 2]
    # the cap of the first leaves five for the others, three to two
    assert share_out([90, 6, 4], 10, [5, 9, 9]) == [5, 3, 2]
    assert share_out([98, 1, 1], 10, [9, 9, 9], floor=2) == [6, 2, 2]
    # floors that cannot be paid, weights of nothing, more than there is
    assert share_out([1, 2, 3], 4, [9, 9, 9], floor=2) == [2, 1, 1]
    assert share_out([0, 0, 0], 4, [9, 9, 9]) == [2, 1, 1]
    assert share_out([1, 0, 0], 7, [3, 9, 9]) == [3, 2, 2]
    assert share_out([1, 1], 99, [3, 4]) == [3, 4]


def test_rows_are_shared_out_on_their_own() -> None:
    weights, cap = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[9, 9], [5, 0]])
    made = apportion(weights, torch.tensor([8, 3]), cap)
    assert made.tolist() == [[2, 6], [3, 0]]
    assert made.dtype == torch.long
