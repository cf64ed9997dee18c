"""Scores from keys and values alone."""

import pytest
import torch

from tests.importance.entries import golden, near, random_entries, same_alone
from vlm_eff.importance.query_free import key_difference, mean_cosine, norms

EVERY = torch.ones(1, 3, dtype=torch.bool)


def test_worked_example_of_the_mean_cosine() -> None:
    keys = torch.tensor([[[[1.0, 0], [0, 1], [1, 1]]]]).double()
    near(mean_cosine(keys, EVERY)[0], golden(".4714"))
    assert float(mean_cosine(keys[:, :, :1].expand(-1, -1, 3, -1), EVERY)) == pytest.approx(1)
    assert float(mean_cosine(keys, torch.tensor([[True, True, False]]))) == pytest.approx(0)
    assert float(mean_cosine(keys, torch.tensor([[True, False, False]]))) == 0


@pytest.mark.parametrize("seed", range(3))
def test_double_loops_agree(seed: int) -> None:
    entries = random_entries(seed)
    made, unlike, size = (f(entries.keys, entries.present) for f in (mean_cosine, key_difference, norms))
    for b in range(2):
        for h in range(2):
            keys = entries.keys[b, h][entries.present[b]]
            unit = keys / keys.norm(dim=1, keepdim=True)
            pairs = unit @ unit.T
            count = len(keys)
            want = (float(pairs.sum()) - count) / count / (count - 1)
            assert float(made[b, h]) == pytest.approx(want, abs=1e-12)
            anchor = unit.mean(0)
            torch.testing.assert_close(unlike[b, h][entries.present[b]], -(unit @ anchor) / anchor.norm())
            torch.testing.assert_close(size[b, h][entries.present[b]], keys.square().sum(1).sqrt())


def test_a_row_gets_what_it_gets_alone() -> None:
    for seed in range(3):
        for score in (mean_cosine, key_difference, norms):
            same_alone(random_entries(seed), lambda e, score=score: score(e.keys, e.present))


def test_the_key_that_points_elsewhere_is_kept() -> None:
    keys = torch.tensor([[[[1.0, 0.1], [5, 0], [-1, 1]]]])
    assert int(key_difference(keys, EVERY).argmax()) == 2
    assert bool(key_difference(torch.zeros(1, 1, 3, 2), EVERY).isfinite().all())
