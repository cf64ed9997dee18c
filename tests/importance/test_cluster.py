"""Density-peak clustering against its definition in loops."""

import pytest
import torch
from torch import Tensor

from vlm_eff.importance import cluster
from vlm_eff.importance.cluster import dpc_knn, dpc_scores

SEEDS = range(6)


def points(seed: int, rows: int = 3, width: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(rows, width, generator=generator) < 0.75
    valid[0], valid[1, :4] = True, True
    return torch.randn(rows, width, 4, generator=generator) + 3, valid


def by_hand(x: Tensor, clusters: int, k: int) -> tuple[list[int], list[int], list[float]]:
    """Centres, centre of each token and scores of one row of existing tokens."""
    count = len(x)
    gap = [[float((a - b).double().norm()) / 2 for b in x] for a in x]
    density = [
        float(torch.tensor([-sum(d * d for d in sorted(line)[:k]) / min(k, count)]).double().exp()) for line in gap
    ]
    scores = []
    for i, line in enumerate(gap):
        denser = [line[j] for j in range(count) if (-density[j], j) < (-density[i], i)]
        scores.append(density[i] * (min(denser) if denser else max(line)))
    centres = sorted(sorted(range(count), key=lambda i: (-scores[i], i))[:clusters])
    nearest = [i if i in centres else min(centres, key=lambda c: (gap[i][c], c)) for i in range(count)]
    return centres, nearest, scores


@pytest.mark.parametrize("block", [1 << 24, 60])
@pytest.mark.parametrize("seed", SEEDS)
def test_centres_and_members_follow_from_the_definition(seed: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_BLOCK", block)
    x, valid = points(seed)
    count = torch.tensor([3, 1, 2])
    centres, member = dpc_knn(x, count, 4, valid)
    scores = dpc_scores(x, 4, valid)
    for row in range(3):
        exist = valid[row].nonzero()[:, 0]
        want, nearest, rank = by_hand(x[row, exist], int(count[row]), 4)
        assert centres[row].nonzero()[:, 0].tolist() == exist[want].tolist()
        assert member[row, exist].tolist() == exist[nearest].tolist()
        torch.testing.assert_close(scores[row, exist], torch.tensor(rank), atol=1e-5, rtol=1e-4)
        assert torch.equal(member[row, ~valid[row]], (~valid[row]).nonzero()[:, 0])


def test_three_heaps_are_three_clusters() -> None:
    heaps = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = (heaps[:, None] + torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0)) / 10).view(1, 15, 2)
    centres, member = dpc_knn(x, 3, 5, torch.ones(1, 15, dtype=torch.bool))
    assert sorted(column // 5 for column in centres[0].nonzero()[:, 0].tolist()) == [0, 1, 2]
    assert (member[0] // 5).tolist() == [0] * 5 + [1] * 5 + [2] * 5


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_do_not_know_of_one_another_nor_of_padding(seed: int) -> None:
    x, valid = points(seed)
    x[~valid] = 1e6
    centres, member = dpc_knn(x, 2, 4, valid)
    for row in range(3):
        exist = valid[row].nonzero()[:, 0]
        alone = dpc_knn(x[row : row + 1, exist], 2, 4, torch.ones(1, len(exist), dtype=torch.bool))
        assert torch.equal(centres[row, exist], alone[0][0])
        assert torch.equal(member[row, exist], exist[alone[1][0]])


def test_equal_tokens_need_no_noise() -> None:
    x, every = torch.ones(1, 6, 3), torch.ones(1, 6, dtype=torch.bool)
    centres, member = dpc_knn(x, 2, 3, every)
    assert centres[0].tolist() == [True, True, False, False, False, False]
    # the second is a centre of its own, all others go to the first
    assert member[0].tolist() == [0, 1, 0, 0, 0, 0]


def test_as_many_clusters_as_tokens_and_rows_without_tokens() -> None:
    x, _ = points(0)
    valid = torch.ones(3, 10, dtype=torch.bool)
    valid[1] = False
    centres, member = dpc_knn(x, 99, 5, valid)
    assert torch.equal(centres, valid)
    assert torch.equal(member, torch.arange(10).expand(3, 10))


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    x, valid = points(0)
    assert torch.equal(dpc_knn(x, 3, 5, valid)[1], dpc_knn(x, 3, 5, valid)[1])
    assert torch.equal(torch.get_rng_state(), before)
