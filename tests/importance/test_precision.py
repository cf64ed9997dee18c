"""Bits follow scores: by a threshold, or as the best use of a budget."""

from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor

from vlm_eff.core.errors import ConfigError
from vlm_eff.importance.precision import allocate_bits, threshold_bits

LEVELS = [(0, 2, 4, 8), (0, 2, 4), (2, 4), (0, 1, 2, 4, 8), (0, 4, 6, 8), (2, 3, 8)]


def drawn(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=made), torch.rand(shape, generator=made) > 0.3


def test_the_threshold_rule() -> None:
    scores, present = torch.tensor([[0.5, 0.1, 0.9, 0.5, 0.7]]), torch.tensor([[True, True, True, True, False]])
    assert threshold_bits(scores, present, high=8, low=2, tau=0.5).tolist() == [[2, 2, 8, 2, 0]]
    # half of four entries; the tie goes to the lower index
    assert threshold_bits(scores, present, high=8, low=2, high_share=0.5).tolist() == [[8, 2, 8, 2, 0]]
    assert threshold_bits(scores, present, high=8, low=0, high_share=0.51).tolist() == [[8, 0, 8, 8, 0]]
    assert threshold_bits(scores, present, high=8, low=2, high_share=0).tolist() == [[2, 2, 2, 2, 0]]
    assert threshold_bits(scores, present, high=8, low=2, high_share=1).tolist() == [[8, 8, 8, 8, 0]]


def test_a_share_that_is_a_whole_number_is_not_rounded_up() -> None:
    scores, present = drawn(1, 100)[0], torch.ones(1, 100, dtype=torch.bool)
    for percent in range(101):
        made = threshold_bits(scores, present, high=4, low=2, high_share=percent / 100)
        assert int((made == 4).sum()) == percent


def test_heads_have_thresholds_of_their_own() -> None:
    scores, present = torch.tensor([[[1.0, 2, 3], [30, 20, 10]]]), torch.tensor([[True, True, True]])
    assert threshold_bits(scores, present, high=4, low=2, high_share=1 / 3).tolist() == [[[2, 2, 4], [4, 2, 2]]]


@pytest.mark.parametrize("high", range(12))
def test_with_two_levels_the_knapsack_is_the_threshold_rule(high: int) -> None:
    scores, _ = drawn(3, 11, seed=high)
    scores[:, 5] = scores[:, 2]
    present = torch.ones(3, 11, dtype=torch.bool)
    made = allocate_bits(scores, present, (2, 4), 11 * 2 + high * 2)
    assert torch.equal(made, threshold_bits(scores, present, high=4, low=2, high_share=high / 11))


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_the_budget_is_never_passed_and_nothing_is_left_that_could_be_spent(levels: tuple[int, ...]) -> None:
    scores, present = drawn(4, 2, 9, seed=1)
    hull = [(levels[at], levels[at + 1]) for at in range(len(levels) - 1)]
    least, most = present.sum((1, 2)) * levels[0], present.sum((1, 2)) * levels[-1]
    for extra in range(int((most - least).max()) + 3):
        budget = least + extra
        bits = allocate_bits(scores, present, levels, budget)
        assert not bits[~present].any()
        assert set(bits[present].tolist()) <= set(levels)
        left = budget - bits.sum((1, 2))
        assert (left >= 0).all()
        for row in range(4):
            steps = [above - below for below, above in hull if (bits[row][present[row]] == below).any()]
            assert not steps or left[row] < min(steps)


@pytest.mark.parametrize("levels", [(0, 2, 4), (2, 4), (0, 1, 2), (0, 8)], ids=str)
def test_equal_steps_spend_the_budget_exactly(levels: tuple[int, ...]) -> None:
    scores, present = drawn(4, 13, seed=2)
    step = levels[1] - levels[0]
    least, most = present.sum(1) * levels[0], present.sum(1) * levels[-1]
    for extra in range(0, 60, step):
        bits = allocate_bits(scores, present, levels, least + extra)
        assert torch.equal(bits.sum(1), torch.minimum(least + extra, most))


@pytest.mark.parametrize("levels", [(0, 2, 4), (0, 2, 4, 8), (1, 2, 4)], ids=str)
def test_no_other_allocation_of_the_bits_is_better(levels: tuple[int, ...]) -> None:
    """Against every allocation there is, wherever the running sum of steps meets the budget exactly."""
    scores, present = drawn(1, 5, seed=3)[0], torch.ones(1, 5, dtype=torch.bool)
    every = list(product(levels, repeat=5))
    checked = 0

    def loss(bits: Any) -> float:
        return sum(float(score) * 2.0 ** (-2 * b) for score, b in zip(scores[0], bits, strict=True))

    for budget in range(5 * levels[0], 5 * levels[-1] + 1):
        made = allocate_bits(scores, present, levels, budget)[0].tolist()
        best = min(loss(bits) for bits in every if sum(bits) <= budget)
        assert loss(made) >= best - 1e-9
        if max(above - below for below, above in pairwise(levels)) == 2 and levels[0] == 0:
            assert loss(made) == pytest.approx(best)
            checked += 1
        # every solution that spends all it is given along the hull is optimal: its price separates taken from left
        gains = [
            (score * (2.0 ** (-2 * a) - 2.0 ** (-2 * b)) / (b - a), got >= b)
            for score, got in zip(scores[0].tolist(), made, strict=True)
            for a, b in pairwise(levels)
        ]
        if min((gain for gain, taken in gains if taken), default=1e9) > max(
            (gain for gain, taken in gains if not taken), default=0
        ):
            assert loss(made) == pytest.approx(min(loss(bits) for bits in every if sum(bits) <= sum(made)))
            checked += 1
    assert checked > 5


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_raising_a_score_never_lowers_its_bits(levels: tuple[int, ...]) -> None:
    scores, present = drawn(1, 7, seed=4)
    scores[0, 3] = scores[0, 1]
    many = 300
    made = torch.Generator().manual_seed(5)
    which = torch.randint(7, (many,), generator=made)
    raised = scores.repeat(many, 1)
    raised[torch.arange(many), which] *= 1 + 3 * torch.rand(many, generator=made)
    for extra in range(40):
        budget = int(present.sum()) * levels[0] + extra
        before = allocate_bits(scores, present, levels, budget)[0, which]
        after = allocate_bits(raised, present.expand(many, 7), levels, budget)[torch.arange(many), which]
        assert (after >= before).all()


def test_ties_go_to_the_lower_index_and_to_the_lower_step() -> None:
    scores, present = torch.ones(2, 5), torch.ones(2, 5, dtype=torch.bool)
    scores[1] = 0
    assert allocate_bits(scores, present, (0, 2, 4), 6).tolist() == [[2, 2, 2, 0, 0]] * 2
    assert allocate_bits(scores, present, (0, 2, 4), 14).tolist() == [[4, 4, 2, 2, 2]] * 2


def test_many_equal_scores_are_served_in_order() -> None:
    scores, present = torch.ones(1, 3000), torch.ones(1, 3000, dtype=torch.bool)
    assert allocate_bits(scores, present, (0, 2, 4), 7000).tolist() == [[4] * 500 + [2] * 2500]


def test_scores_below_zero_count_as_zero() -> None:
    scores, present = torch.tensor([[-2.0, -1, 0.1]]), torch.ones(1, 3, dtype=torch.bool)
    assert allocate_bits(scores, present, (0, 2, 4), 6).tolist() == [[2, 0, 4]]


def test_a_step_that_is_too_dear_leaves_room_for_a_cheaper_one() -> None:
    """Of 6 bits the best entry takes 4; the 2 that are left do not bring it to 8, but the next one to 2."""
    scores = torch.tensor([[1000.0, 1.0, 0.5]])
    present = torch.ones(1, 3, dtype=torch.bool)
    made = {budget: allocate_bits(scores, present, (0, 2, 4, 8), budget).tolist() for budget in (4, 6, 7, 8, 12)}
    assert made == {4: [[4, 0, 0]], 6: [[4, 2, 0]], 7: [[4, 2, 0]], 8: [[8, 0, 0]], 12: [[8, 2, 2]]}


def test_rows_and_heads_have_the_budget_they_are_given() -> None:
    scores, present = torch.tensor([[[1.0, 2], [30, 40]]]), torch.ones(1, 2, dtype=torch.bool)
    assert allocate_bits(scores, present, (0, 2), 4).tolist() == [[[0, 0], [2, 2]]]
    assert allocate_bits(scores, present, (0, 2), torch.tensor([[2, 2]])).tolist() == [[[0, 2], [0, 2]]]
    rows = torch.tensor([[1.0, 2], [2, 1]])
    assert allocate_bits(rows, rows > 0, (0, 2), torch.tensor([2, 4])).tolist() == [[0, 2], [2, 2]]


def test_absent_entries_take_and_change_nothing() -> None:
    scores, present = drawn(1, 9, seed=6)
    scores[~present] = 1e9
    wanted = allocate_bits(scores[present][None], present[present][None], (0, 2, 4, 8), 20)
    made = allocate_bits(scores, present, (0, 2, 4, 8), 20)
    assert torch.equal(made[present], wanted[0]) and not made[~present].any()
    assert allocate_bits(scores, torch.zeros_like(present), (2, 4), 20).sum() == 0
    assert allocate_bits(scores[:, :0], present[:, :0], (2, 4), 20).shape == (1, 0)


def test_levels_above_the_hull_are_never_used() -> None:
    scores, present = drawn(1, 9, seed=7)[0], torch.ones(1, 9, dtype=torch.bool)
    # two bits hardly help before the other two
    for budget in range(40):
        bits = allocate_bits(scores, present, (0, 2, 4), budget, distortion=(1.0, 0.9, 0.1))
        assert set(bits.flatten().tolist()) <= {0, 4}
    assert 2 in allocate_bits(scores, present, (0, 2, 4), 10, distortion=(1.0, 0.2, 0.1))


@pytest.mark.parametrize(
    ("levels", "budget", "distortion"),
    [
        ((), 10, None),
        ((4, 2), 10, None),
        ((2, 2), 10, None),
        ((-1, 2), 10, None),
        ((0, 2.5), 10, None),
        ((2, 4), 5, None),
        ((0, 2), -1, None),
        ((0, 2), 10, (1.0,)),
        ((0, 2), 10, (0.5, 0.5)),
        ((0, 2), 10, (1.0, torch.nan)),
    ],
)
def test_what_cannot_be_allocated_is_refused(levels: Any, budget: int, distortion: Any) -> None:
    with pytest.raises(ConfigError, match="Accepted: "):
        allocate_bits(torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool), levels, budget, distortion)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"tau": 0.5, "high_share": 0.5}, {"high_share": 1.5}, {"high_share": "all"}, {"tau": 0.5, "low": 8}],
    ids=str,
)
def test_what_is_no_threshold_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Accepted: "):
        threshold_bits(torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool), **({"high": 8, "low": 2} | wrong))
