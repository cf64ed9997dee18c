"""Greedy choices against brute force over every subset or every next token, in float64."""

import itertools

import pytest
import torch
from torch import Tensor

from vlm_eff.importance import determinant, similarity
from vlm_eff.importance.determinant import dpp, dpp_lines
from vlm_eff.importance.greedy import max_min, nearest_distance
from vlm_eff.importance.similarity import lines, pairwise

SEEDS = range(6)


def points(seed: int, rows: int = 3, width: int = 9, depth: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, which of them exist (the first row: all), and a quality for each."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, depth, generator=generator)
    valid = torch.rand(rows, width, generator=generator) < 0.75
    valid[0], valid[1:2, :2] = True, True
    return x, valid, torch.rand(rows, width, generator=generator) + 0.1


def chosen(mask: Tensor) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in mask]


def far_apart(x: Tensor, count: int) -> list[int]:
    """Max-min greedy of one row of existing tokens, by loops."""
    unit = x.double() / x.double().norm(dim=-1, keepdim=True)
    distance = (1 - unit @ unit.T).tolist()
    near = [min([d for j, d in enumerate(line) if j != i], default=2.0) for i, line in enumerate(distance)]
    made = [near.index(max(near))]
    while len(made) < count:
        gap = {j: min(distance[i][j] for i in made) for j in range(len(x)) if j not in made}
        made.append(max(gap, key=lambda j: (gap[j], -j)))
    return sorted(made)


@pytest.mark.parametrize("table", [0, 4096])
@pytest.mark.parametrize("seed", SEEDS)
def test_max_min_is_the_greedy_of_its_definition(seed: int, table: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "TABLE", table)
    x, valid, _ = points(seed)
    count = torch.tensor([4, 2, 9])
    for row, made in enumerate(chosen(max_min(x, count, valid))):
        exist = valid[row].nonzero()[:, 0]
        want = far_apart(x[row, exist], min(int(count[row]), len(exist)))
        assert made == exist[want].tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_max_min_is_within_a_factor_two_of_the_best_subset(seed: int) -> None:
    x, _, _ = points(seed, rows=1)
    angle = pairwise(x, torch.ones(1, 9, dtype=torch.bool))[0].double().acos()

    def spread(subset: tuple[int, ...] | list[int]) -> float:
        return min(float(angle[i, j]) for i, j in itertools.combinations(subset, 2))

    made = chosen(max_min(x, torch.tensor([4]), torch.ones(1, 9, dtype=torch.bool)))[0]
    # angles are a metric, 1 - cosine is not: the bound of the greedy holds for them, and their order is the same
    assert spread(made) >= max(map(spread, itertools.combinations(range(9), 4))) / 2 - 1e-9


def test_copies_are_chosen_last_and_never_twice() -> None:
    x, _, quality = points(1, rows=1, width=8)
    x[0, 4:] = x[0, :4]
    every = torch.ones(1, 8, dtype=torch.bool)
    for count in range(1, 9):
        for made in (max_min(x, torch.tensor([count]), every), dpp(x, quality, torch.tensor([count]), every)):
            assert int(made.sum()) == count
            if count <= 4:
                assert len({column % 4 for column in chosen(made)[0]}) == count


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_do_not_know_of_one_another(seed: int) -> None:
    x, valid, quality = points(seed, rows=4)
    count = torch.tensor([5, 1, 3, 7])
    for row in range(4):
        exist = valid[row].nonzero()[:, 0]
        alone = x[row : row + 1, exist], count[row : row + 1], torch.ones(1, len(exist), dtype=torch.bool)
        far = max_min(x, count, valid)[row, exist]
        assert torch.equal(far, max_min(*alone)[0])
        good = dpp(x, quality, count, valid)[row, exist]
        assert torch.equal(good, dpp(alone[0], quality[row : row + 1, exist], *alone[1:])[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_another_order_of_tokens_chooses_the_same_ones(seed: int) -> None:
    x, _, quality = points(seed, rows=1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    count, every = torch.tensor([4]), torch.ones(1, 9, dtype=torch.bool)
    assert torch.equal(max_min(x[:, order], count, every), max_min(x, count, every)[:, order])
    good = dpp(x[:, order], quality[:, order], count, every)
    assert torch.equal(good, dpp(x, quality, count, every)[:, order])


def kernel(x: Tensor, quality: Tensor) -> Tensor:
    unit = x.double() / x.double().norm(dim=-1, keepdim=True)
    return quality.double()[:, None] * (unit @ unit.T) * quality.double()


@pytest.mark.parametrize("table", [0, 4096])
@pytest.mark.parametrize("seed", SEEDS)
def test_each_dpp_step_takes_the_largest_determinant(seed: int, table: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "TABLE", table)
    x, valid, quality = points(seed)
    count = torch.tensor([5, 2, 3])
    for row, made in enumerate(chosen(dpp(x, quality, count, valid))):
        exist = valid[row].nonzero()[:, 0]
        whole, want = kernel(x[row, exist], quality[row, exist]), []
        for _ in range(min(int(count[row]), len(exist))):
            left = [j for j in range(len(exist)) if j not in want]
            want.append(max(left, key=lambda j: float(whole[[*want, j]][:, [*want, j]].det())))
        assert made == exist[sorted(want)].tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_first_pick_is_the_best_and_the_pair_is_good(seed: int) -> None:
    x, _, quality = points(seed, rows=1)
    every = torch.ones(1, 9, dtype=torch.bool)
    first = chosen(dpp(x, quality, torch.tensor([1]), every))[0]
    assert first == [int(quality[0].argmax())]
    whole = kernel(x[0], quality[0])
    pair = chosen(dpp(x, quality, torch.tensor([2]), every))[0]
    best = max(float(whole[[i, j]][:, [i, j]].det()) for i, j in itertools.combinations(range(9), 2))
    # submodular greedy: log-determinants above the least value, here simply not far from the best pair
    assert float(whole[pair][:, pair].det()) >= best / 4


@pytest.mark.parametrize("ahead", [1, 4, 64])
@pytest.mark.parametrize("table", [0, 30, 4096])
@pytest.mark.parametrize("steps", [9, 40])
def test_guessing_ahead_changes_nothing(ahead: int, table: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, valid, quality = points(7, rows=3, width=60, depth=48)
    # copies and near copies make guesses bad
    x[:, 30:50] = x[:, :1] + 0.05 * x[:, 30:50]
    count = torch.tensor([steps, 3, steps // 2])
    want = dpp_lines(lines(x, valid), quality, count, valid)
    monkeypatch.setattr(similarity, "TABLE", table)
    monkeypatch.setattr(determinant, "_AHEAD", ahead)
    monkeypatch.setattr(determinant, "_LEAST", 1)
    assert torch.equal(dpp(x, quality, count, valid), want)


def test_a_guess_that_is_wrong_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    x, valid, quality = points(7, rows=1, width=60, depth=48)
    turns = []

    def alone(self: determinant._Kernel, left: Tensor, column: int, step: int) -> list[int]:
        turns.append(step)
        return [column]

    monkeypatch.setattr(determinant._Kernel, "likely", alone)
    count = torch.tensor([8])
    assert torch.equal(dpp(x, quality, count, valid), dpp_lines(lines(x, valid), quality, count, valid))
    assert turns == list(range(8))


def test_beyond_the_rank_the_lower_index_goes_first() -> None:
    x, _, _ = points(2, rows=1, width=12, depth=3)
    every = torch.ones(1, 12, dtype=torch.bool)
    three = chosen(dpp(x, torch.ones(1, 12), torch.tensor([3]), every))[0]
    made = chosen(dpp(x, torch.ones(1, 12), torch.tensor([7]), every))[0]
    assert made == sorted(three + [column for column in range(12) if column not in three][:4])


def test_empty_rows_and_equal_tokens() -> None:
    x = torch.ones(2, 5, 4)
    valid = torch.tensor([[True] * 5, [False] * 5])
    for made in (max_min(x, torch.tensor([3, 3]), valid), dpp(x, torch.ones(2, 5), torch.tensor([3, 3]), valid)):
        assert chosen(made) == [[0, 1, 2], []]
    assert max_min(x[:, :0], torch.tensor([3, 3]), valid[:, :0]).shape == (2, 0)
    assert nearest_distance(x[:, :1], valid[:, :1])[0, 0] == torch.inf
