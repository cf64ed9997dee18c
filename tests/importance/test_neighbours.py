"""Grid neighbours and their likeness, against hand-worked cases and a slow loop."""

import torch

from vlm_eff.importance.neighbours import grid_neighbours, neighbour_similarity


def grid(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(height).repeat_interleave(width)[None], torch.arange(width).repeat(height)[None]


def names(beside: torch.Tensor, exists: torch.Tensor) -> list[set[int]]:
    return [set(columns[ok].tolist()) for columns, ok in zip(beside[0], exists[0], strict=True)]


def test_a_full_grid_has_its_four_neighbours_and_edges_have_fewer() -> None:
    y, x = grid(2, 3)
    made = names(*grid_neighbours(torch.zeros_like(y), y, x, torch.ones_like(y, dtype=torch.bool)))
    assert made == [{1, 3}, {0, 2, 4}, {1, 5}, {0, 4}, {1, 3, 5}, {2, 4}]


def test_grids_do_not_touch_and_what_is_gone_is_no_neighbour() -> None:
    y, x = torch.tensor([[0, 0, 0, 0]]), torch.tensor([[0, 2, 0, 1]])
    group = torch.tensor([[0, 0, 1, 1]])
    valid = torch.tensor([[True, True, True, True]])
    assert names(*grid_neighbours(group, y, x, valid)) == [set(), set(), {3}, {2}]
    valid[0, 3] = False
    assert names(*grid_neighbours(group, y, x, valid)) == [set(), set(), set(), set()]


def test_without_a_grid_the_order_counts() -> None:
    unknown = torch.full((1, 3), -1)
    valid = torch.ones(1, 3, dtype=torch.bool)
    assert names(*grid_neighbours(torch.zeros(1, 3).long(), unknown, unknown, valid)) == [{1}, {0, 2}, {1}]


def test_likeness_is_the_mean_cosine_and_nobody_is_like_nobody() -> None:
    generator = torch.Generator().manual_seed(0)
    y, x = grid(3, 4)
    valid = torch.rand(1, 12, generator=generator) < 0.7
    features = torch.randn(1, 12, 5, generator=generator)
    beside, exists = grid_neighbours(torch.zeros_like(y), y, x, valid)
    got = neighbour_similarity(features, beside, exists)[0]
    for i in range(12):
        if not valid[0, i]:
            continue
        near = [j for j in range(12) if valid[0, j] and abs(y[0, i] - y[0, j]) + abs(x[0, i] - x[0, j]) == 1]
        want = [float(torch.cosine_similarity(features[0, i], features[0, j], dim=0)) for j in near]
        assert abs(float(got[i]) - (sum(want) / len(want) if want else 0.0)) < 1e-6


def test_no_candidates_at_all() -> None:
    empty = torch.zeros(2, 0, dtype=torch.long)
    beside, exists = grid_neighbours(empty, empty, empty, empty.bool())
    assert neighbour_similarity(torch.zeros(2, 0, 4), beside, exists).shape == (2, 0)
