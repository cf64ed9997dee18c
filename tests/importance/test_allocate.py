"""Shares of a budget: exact sums, bounds, the worked examples of the rules."""

import itertools
import random

import pytest
import torch
from torch import Tensor

from tests.importance.entries import golden, near, random_entries, worked
from vlm_eff.core.errors import ConfigError
from vlm_eff.importance.allocate import apportion, common_mass, density, hybrid, pyramid, softmax
from vlm_eff.importance.entry_scores import received
from vlm_eff.importance.head_budgets import head_counts
from vlm_eff.importance.layer_signals import cross_entropy, sparsity

SEEDS = range(30)


def case(seed: int) -> tuple[Tensor, int, Tensor, Tensor]:
    made = random.Random(seed)
    size = made.randint(1, 7)
    weights = torch.tensor([made.choice([0.0, 1.0, made.random(), 10 * made.random() ** 4]) for _ in range(size)])
    low = torch.tensor([made.randint(0, 3) for _ in range(size)])
    high = low + torch.tensor([made.randint(0, 9) for _ in range(size)])
    return weights, made.randint(int(low.sum()), int(high.sum())), low, high


def test_worked_examples() -> None:
    assert apportion(torch.tensor([5.0, 3, 1, 1]), 17, 1, 6).tolist() == [6, 6, 3, 2]
    assert apportion(torch.ones(3), 10, hi=9).tolist() == [4, 3, 3]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_sum_is_exact_and_bounds_hold(seed: int) -> None:
    weights, total, low, high = case(seed)
    got = apportion(weights, total, low, high)
    assert got.dtype == torch.long and int(got.sum()) == total
    assert bool(((low <= got) & (got <= high)).all())
    assert int(apportion(weights, total).sum()) == total


@pytest.mark.parametrize("seed", SEEDS)
def test_more_weight_never_means_less(seed: int) -> None:
    weights, total, low, high = case(seed)
    got = apportion(weights, total, low, high)
    for place in range(len(weights)):
        heavier = weights.clone()
        heavier[place] += 0.7
        assert apportion(heavier, total, low, high)[place] >= got[place]
    # under common bounds, the heavier of two has at least as much
    size = len(weights)
    total = min(total, 6 * size)
    shared = apportion(weights, max(total, size), 1, 6)
    for a, b in itertools.permutations(range(size), 2):
        assert weights[a] <= weights[b] or shared[a] >= shared[b]


@pytest.mark.parametrize("seed", SEEDS)
def test_order_does_not_matter_where_weights_differ(seed: int) -> None:
    weights, total, low, high = case(seed)
    weights = weights + torch.linspace(0, 0.01, len(weights))
    order = torch.randperm(len(weights), generator=torch.Generator().manual_seed(seed))
    got = apportion(weights, total, low, high)
    assert torch.equal(apportion(weights[order], total, low[order], high[order]), got[order])


@pytest.mark.parametrize("total", range(13))
def test_equal_weights_differ_by_one_at_most(total: int) -> None:
    got = apportion(torch.ones(5), total).tolist()
    assert got == [total // 5 + (place < total % 5) for place in range(5)]


@pytest.mark.parametrize("seed", SEEDS)
def test_shares_are_as_near_to_the_quotas_as_rounding_allows(seed: int) -> None:
    weights, total, *_ = case(seed)
    weights = weights + 0.01
    quota = weights.double() / weights.double().sum() * total
    assert bool(((apportion(weights, total) - quota).abs() < 1).all())


def test_rows_have_their_own_totals_and_bounds() -> None:
    weights = torch.tensor([[1.0, 3], [3, 1], [0, 0]])
    got = apportion(weights, torch.tensor([4, 8, 3]), torch.tensor([1, 0]), torch.tensor([[4, 4], [5, 3], [9, 9]]))
    assert got.tolist() == [[1, 3], [5, 3], [2, 1]]
    assert apportion(torch.zeros(2, 0), 0).shape == (2, 0)


@pytest.mark.parametrize(
    "weights, total, low, high",
    [
        ([1.0, 1], 1, 1, 5),
        ([1.0, 1], 11, 1, 5),
        ([1.0, 1], 4, 3, 2),
        ([-1.0, 1], 4, 0, 4),
        ([float("nan"), 1], 4, 0, 4),
    ],
)
def test_what_cannot_be_shared_out_is_an_error(weights: list[float], total: int, low: int, high: int) -> None:
    with pytest.raises(ConfigError):
        apportion(torch.tensor(weights), total, low, high)


def test_many_layers_and_heads_are_quick_and_exact() -> None:
    weights = torch.rand(512, generator=torch.Generator().manual_seed(0)) ** 6
    assert int(apportion(weights, 512 * 50, 4, 200).sum()) == 512 * 50


def test_pyramid() -> None:
    budget, length = torch.tensor([128, 64]), torch.tensor([4096, 100])
    got = pyramid(4, budget, length, 8)
    assert got.round().tolist() == [[242, 166, 90 - 0, 14], [100, 76, 52, 28]]
    for layers in range(1, 9):
        for size, exist in [(40, 41), (40, 60), (40, 2000), (40, 40), (40, 12), (6, 50)]:
            quota = pyramid(layers, torch.tensor([size]), torch.tensor([exist]), 8)
            assert float(quota.sum()) == pytest.approx(layers * min(size, exist))
            assert bool((quota <= exist + 1e-9).all() & (quota.diff(dim=1) <= 1e-9).all())
            exact = apportion(quota, layers * min(size, exist), 0, exist)
            assert int(exact.sum()) == layers * min(size, exist)
            assert bool(((exact - quota).abs() < 1).all())


def test_vl_cache_layers() -> None:
    entries = worked(0, 1).only_rows(5)
    empty = sparsity(*entries.rows, threshold=0.3)
    near(empty[0], golden(".5238 .4762"))
    weights = density(empty[0])
    near(weights / weights.sum() * 0.4 * 2, golden(".3810 .4190"))
    looks = entries.looks
    even = looks[:, None] / looks.sum(-1)[:, None, :, None]
    assert float(sparsity(even, entries.row_valid, looks)[0, 0]) == 0
    first = torch.zeros(1, 1, 3, 8).index_fill_(3, torch.tensor([0]), 1.0)
    assert float(sparsity(first, entries.row_valid, looks)[0, 0]) == pytest.approx(1 - 1 / 7)


def test_hybrid_is_mostly_even() -> None:
    weights = torch.tensor([[3.0, 1, 0, 0], [0, 0, 0, 0]])
    assert torch.allclose(hybrid(weights)[0], torch.tensor([0.35, 0.25, 0.2, 0.2]).double())
    assert torch.allclose(hybrid(weights)[1], torch.full((4,), 0.25).double())
    assert torch.equal(hybrid(weights, 0.0)[0], torch.full((4,), 0.25).double())
    assert hybrid(weights, 1.0)[0].tolist() == [0.75, 0.25, 0, 0]
    with pytest.raises(ConfigError):
        hybrid(weights, 1.2)


def test_worked_example_of_the_common_mass() -> None:
    layers = torch.stack([received(*worked(head).scored)[0, 0] for head in (0, 1)])[None]
    present = torch.ones(1, 8, dtype=torch.bool)
    counts, fraction = common_mass(layers, torch.tensor([8]), present)
    assert counts.tolist() == [[4, 4]]
    near(fraction, golden(".8160"))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_common_mass_is_common(seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, 3, 10, generator=made) ** 5
    present = torch.arange(10) >= torch.tensor([[0], [4]])
    for total in (0, 1, 7, 15, 18, 40):
        counts, fraction = common_mass(scores, torch.full((2,), total), present)
        assert counts.sum(1).tolist() == [min(total, 30), min(total, 18)]
        for row in range(2):
            for layer in range(3):
                best = scores[row, layer][present[row]].double().sort(descending=True).values
                mass = best.cumsum(0) / best.sum()
                count = int(counts[row, layer])
                # the last one taken was needed to reach the fraction, and with it the fraction is reached
                assert count < 2 or float(mass[count - 2]) <= float(fraction[row]) + 1e-9
                assert count == len(best) or count == 0 or float(mass[count - 1]) >= float(fraction[row]) - 1e-9
        alone, _ = common_mass(scores[1:, :, 4:], torch.tensor([total]), present[1:, 4:])
        assert torch.equal(alone, counts[1:])


def test_equal_layers_get_equal_shares_of_the_common_mass() -> None:
    one = torch.rand(1, 1, 12, generator=torch.Generator().manual_seed(1))
    every = torch.ones(1, 12, dtype=torch.bool)
    assert common_mass(one.expand(-1, 4, -1), torch.tensor([20]), every)[0].tolist() == [[5, 5, 5, 5]]
    # nothing to tell entries apart, nor any mass left
    assert common_mass(torch.zeros(1, 4, 12), torch.tensor([20]), every)[0].tolist() == [[5, 5, 5, 5]]


def test_signals_of_layers_are_their_double_loops_and_ignore_padding() -> None:
    entries = random_entries(2)
    got = cross_entropy(*entries.rows, entries.row_modality, entries.modality)
    for b in range(2):
        there = entries.present[b]
        a = entries.attention[b][:, there][:, :, there]
        kinds = entries.modality[b, there]
        looks = entries.looks[b][there][:, there]
        term = torch.where(looks & (a > 0), -a * a.clamp(min=1e-300).log(), 0.0)
        want = 0.0
        for own in (0, 1):
            block = term[:, kinds == own][:, :, kinds != own]
            want += float(block.sum((1, 2)).mean()) / max(int((kinds == own).sum()), 1)
        assert float(got[b]) == pytest.approx(want, rel=1e-5)
    assert softmax(torch.tensor([0.0, 0.0])).tolist() == [0.5, 0.5]


def test_worked_example_of_adakv() -> None:
    entries = worked(0, 1).only_rows(-2)
    score, before = received(*entries.scored), torch.arange(8)[None] < 6
    for floor in (0.0, 0.2):
        assert head_counts(score, before, 3, floor).tolist() == [[4, 2]]


@pytest.mark.parametrize("seed", SEEDS)
def test_head_counts(seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, 4, 9, generator=made) ** 4
    present = torch.arange(9) >= torch.tensor([[0], [3]])
    for base in (0, 1, 3, 5, 20):
        for floor in (0.0, 0.2, 0.5, 1.0):
            got = head_counts(scores, present, base, floor)
            assert got.sum(1).tolist() == [min(4 * base, 36), min(4 * base, 24)]
            assert bool((got <= present.sum(1)[:, None]).all())
            alone = head_counts(scores[1:, :, 3:], present[1:, 3:], torch.tensor([base]), floor)
            assert torch.equal(alone, got[1:])
            if floor == 1.0:
                assert bool((got == got[:, :1]).all())
    equal = scores[:, :1].expand(-1, 4, -1)
    assert head_counts(equal, present, 3).tolist() == [[3] * 4] * 2
    assert head_counts(torch.zeros_like(equal), present, 3, 0.0).tolist() == [[3] * 4] * 2
    # a head of heavier scores takes more, though never all of what the floor gives the others
    loud = torch.cat([scores[:, :1] + 5, scores[:, 1:]], 1)
    assert head_counts(loud, present, 2, 0.5)[:, 0].tolist() == [5, 4]
    # heads that have evicted before: none is asked for more than it has
    held = torch.tensor([1, 9, 9, 9])[None, :, None] > torch.arange(9)
    got = head_counts(scores[:1], held, 6, 0.5)
    assert int(got.sum()) == 24 and int(got[0, 0]) <= 1
    with pytest.raises(ConfigError):
        head_counts(scores, present, 2, 1.5)
