"""Scores of cache entries: the worked example, double loops in float64, padding and neighbours."""

import pytest
import torch

from tests.importance.entries import alone, golden, near, random_entries, same_alone, worked
from vlm_eff.core.errors import ConfigError
from vlm_eff.importance.adaptive import mass_count
from vlm_eff.importance.attention import important
from vlm_eff.importance.entry_scores import last_row, pooled, received, unread
from vlm_eff.importance.select import top_k

SEEDS = range(4)


def test_worked_example_of_h2o() -> None:
    entries = worked()
    near(entries.attention[0, 0, 7], golden(".1092 .2311 .0313 .0662 .1402 .2968 .0402 .0850"))
    near(received(*entries.scored)[0, 0], golden("2.5849 1.8641 1.2579 .6869 .8211 .5645 .1356 .0850"))


def test_worked_example_of_snapkv() -> None:
    entries = worked().only_rows(-2)
    before = torch.arange(8)[None] < 6
    score = received(*entries.scored)
    near(score[0, 0, :6], golden(".3686 .2663 .1056 .2236 .4734 .3419"))
    mean, most = pooled(score, 3, "avg", before), pooled(score, 3, "max", before)
    near(mean[0, 0, :6], golden(".2116 .2468 .1985 .2675 .3463 .2717"))
    near(most[0, 0, :6], golden(".3686 .3686 .2663 .4734 .4734 .4734"))
    count = torch.tensor([2])
    assert top_k(mean[:, 0], count, before).nonzero()[:, 1].tolist() == [4, 5]
    assert top_k(most[:, 0], count, before).nonzero()[:, 1].tolist() == [3, 4]
    assert not bool(mean[0, 0, 6:].any() | most[0, 0, 6:].any())


def test_worked_example_of_scissorhands_and_vl_cache() -> None:
    entries = worked().only_rows(-4)
    count = unread(*entries.scored, length=torch.tensor([8]))
    assert count[0, 0].tolist() == [2, 1, 3, 3, 1, 1, 2, 1]
    rows = worked().only_rows(5)
    near(received(*rows.scored)[0, 0], golden(".4506 .4397 .4727 .2733 .5785 .5645 .1356 .0850"))


def test_worked_example_of_zipvl() -> None:
    entries = worked().only_rows(-4)
    mass = received(*entries.scored)[:, 0]
    looks = entries.looks.sum(1)
    near(mass[0], golden(".6395 .8396 .5269 .3879 .8211 .5645 .1356 .0850"))
    near((mass / looks)[0], golden(".1599 .2099 .1317 .0970 .2053 .1882 .0678 .0850"))
    assert [int(mass_count(mass, tau, entries.present)) for tau in (0.57, 0.6, 0.8, 0.9)] == [3, 4, 5, 6]
    assert important(mass, looks, 0.57, entries.present).nonzero()[:, 1].tolist() == [1, 4, 5]
    assert top_k(mass, torch.tensor([3]), entries.present).nonzero()[:, 1].tolist() == [0, 1, 4]


@pytest.mark.parametrize("seed", SEEDS)
def test_double_loops_agree(seed: int) -> None:
    entries = random_entries(seed)
    batch, heads, rows, size = entries.attention.shape
    raw = torch.zeros(batch, 2, size, dtype=torch.float64)
    few, last = torch.zeros_like(raw), torch.zeros_like(raw)
    for b in range(batch):
        for h in range(heads):
            for q in range(rows):
                length = int(entries.looks[b, q].sum())
                for j in range(size):
                    if not (entries.row_valid[b, q] and entries.looks[b, q, j]):
                        continue
                    a = float(entries.attention[b, h, q, j])
                    raw[b, h // 2, j] += a
                    few[b, h // 2, j] += a < 1 / length - 1e-9
                    last[b, :, j] += a / heads * (q == rows - 1)
    torch.testing.assert_close(received(*entries.scored), raw)
    torch.testing.assert_close(unread(*entries.scored), few)
    torch.testing.assert_close(last_row(*entries.scored), last)


SCORES = {
    "received": lambda e: received(*e.scored),
    "mean": lambda e: pooled(received(*e.scored), 5, "avg", e.present),
    "max": lambda e: pooled(received(*e.scored), 5, "max", e.present),
    "unread": lambda e: unread(*e.scored),
    "last_row": lambda e: last_row(*e.scored),
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_row_gets_what_it_gets_alone(seed: int, name: str) -> None:
    same_alone(random_entries(seed), SCORES[name])
    same_alone(random_entries(seed, batch=3, dtype=torch.float32), SCORES[name])


def test_an_even_share_is_not_below_itself_whatever_rounding_does() -> None:
    for size in range(2, 60):
        every = torch.ones(1, 1, size, dtype=torch.bool)
        even = torch.zeros(1, 1, 1, size).softmax(-1)
        assert not bool(unread(even, every[:, :, 0], every, 1).any())


def test_counts_are_not_masses() -> None:
    # key 0: one large weight among many tiny ones; key 1: always a little more than its share of a third
    a = torch.tensor([[[[0.6, 0.35, 0.05], [0.05, 0.4, 0.55], [0.05, 0.4, 0.55]]]])
    every = torch.ones(1, 3, 3, dtype=torch.bool)
    assert unread(a, every[:, 0], every, 1)[0, 0].tolist() == [2, 0, 1]


@pytest.mark.parametrize("kind", ["avg", "max"])
def test_pooling_closes_up_holes_and_keeps_one(kind) -> None:
    score = torch.tensor([[[9.0, 1, 9, 2, 9, 3]]])
    holes = torch.tensor([[False, True, False, True, False, True]])
    want = pooled(torch.tensor([[[1.0, 2, 3]]]), 3, kind, torch.ones(1, 3, dtype=torch.bool))
    got = pooled(score, 3, kind, holes)
    assert torch.equal(got[:, :, 1::2], want) and not bool(got[:, :, ::2].any())
    assert torch.equal(pooled(score, 1, kind, holes)[:, :, 1::2], score[:, :, 1::2])
    # zeros beyond the ends count for the mean alone
    edges = pooled(-score, 3, kind, holes)[0, 0, 1::2]
    assert torch.allclose(edges, torch.tensor([-1.0, -2.0, -5 / 3] if kind == "avg" else [-1.0, -1, -2]))
    per_head = pooled(score, 3, kind, holes[:, None])
    assert torch.equal(per_head, got)
    assert pooled(score[:, :, :0], 3, kind, holes[:, :0]).shape == (1, 1, 0)
    with pytest.raises(ConfigError, match="odd"):
        pooled(score, 4, kind, holes)


def test_a_planted_needle_is_found_with_its_neighbours() -> None:
    entries = random_entries(3)
    planted = entries.attention.clone().nan_to_num(0.0) * 0.01
    planted[:, :, 8, 5] += 0.9
    score = received(planted, entries.row_valid, entries.looks, 2)
    for kind in ("avg", "max"):
        best = pooled(score, 3, kind, entries.present).argsort(-1, descending=True)[..., :3]
        assert all(set(row) == {4, 5, 6} for row in best.flatten(0, 1).tolist())


def test_nothing_to_look_at_gives_zeros() -> None:
    entries = random_entries(0)
    nobody = torch.zeros_like(entries.row_valid)
    for made in (received, unread, last_row):
        assert not bool(made(entries.attention, nobody, entries.looks, 2).any())
    assert alone(entries, 1).present.shape == (1, 7)
