"""Ranks, top-k and top-k per group against loops that are too simple to be wrong."""

import pytest
import torch
from torch import Tensor

from vlm_eff.importance.select import from_mask, ranks, top_k, top_k_per_group

SEEDS = range(8)


def tables(seed: int, rows: int = 4, width: int = 13) -> tuple[Tensor, Tensor, Tensor]:
    """Scores with many ties and infinities, which of them are valid, and a group number for each."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (rows, width), generator=generator).float()
    scores[torch.rand(rows, width, generator=generator) < 0.1] = float("-inf")
    valid = torch.rand(rows, width, generator=generator) < 0.8
    valid[0] = True
    valid[1] = False
    return scores, valid, torch.randint(0, 3, (rows, width), generator=generator)


def order(scores: Tensor, valid: Tensor) -> list[int]:
    """Valid columns of one row, best first, the lower one of two equals first."""
    columns = [column for column in range(len(scores)) if valid[column]]
    return sorted(columns, key=lambda column: (-float(scores[column]), column))


@pytest.mark.parametrize("seed", SEEDS)
def test_ranks(seed: int) -> None:
    scores, valid, _ = tables(seed)
    made = ranks(scores, valid)
    for row in range(len(scores)):
        best = order(scores[row], valid[row])
        assert [int(made[row, column]) for column in best] == list(range(len(best)))
        assert sorted(made[row].tolist()) == list(range(scores.shape[1]))


@pytest.mark.parametrize("seed", SEEDS)
def test_top_k(seed: int) -> None:
    scores, valid, _ = tables(seed)
    count = torch.minimum(torch.tensor([5, 3, 100, 1]), valid.sum(1))
    made = top_k(scores, count, valid)
    for row in range(len(scores)):
        assert made[row].nonzero()[:, 0].tolist() == sorted(order(scores[row], valid[row])[: int(count[row])])


@pytest.mark.parametrize("seed", SEEDS)
def test_top_k_per_group(seed: int) -> None:
    scores, valid, group = tables(seed)
    count = torch.tensor([[2, 0, 5], [1, 1, 1], [1, 2, 3], [100, 1, 0]])
    made = top_k_per_group(scores, group, count, valid)
    for row in range(len(scores)):
        want = []
        for number in range(3):
            inside = valid[row] & (group[row] == number)
            want += order(scores[row], inside)[: int(count[row, number])]
        assert made[row].nonzero()[:, 0].tolist() == sorted(want)


def test_ties_go_to_the_lower_index() -> None:
    made = top_k(torch.zeros(1, 1000), torch.tensor([7]), torch.ones(1, 1000, dtype=torch.bool))
    assert made.nonzero()[:, 1].tolist() == list(range(7))


def test_low_precision_scores_are_ranked_in_float32() -> None:
    scores = torch.tensor([[1.0, 1.0078125, 0.5]], dtype=torch.bfloat16)
    assert ranks(scores, torch.ones(1, 3, dtype=torch.bool)).tolist() == [[1, 0, 2]]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mask_and_its_selection_are_the_same(seed: int) -> None:
    _, keep, _ = tables(seed)
    made = from_mask(keep)
    assert torch.equal(made.mask(keep.shape[1]), keep)
    assert made.count.tolist() == keep.sum(1).tolist()
    for row, ok in zip(made.index, made.valid, strict=True):
        assert row[ok].tolist() == sorted(row[ok].tolist())
    assert made.index.shape[1] == int(keep.sum(1).max())


def test_an_empty_mask_selects_nothing() -> None:
    made = from_mask(torch.zeros(2, 5, dtype=torch.bool))
    assert made.index.shape == (2, 0)
    assert made.mask(5).sum() == 0
