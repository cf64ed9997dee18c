"""Bipartite matching against the loop of the tower reference, and by hand."""

import pytest
import torch

from tests.tower_reference import matched
from vlm_eff.importance.bipartite import bipartite_match


def groups(index: torch.Tensor, into: torch.Tensor, valid: torch.Tensor | None, row: int) -> list[list[int]]:
    """Members of each token that stays, the one whose place it has first."""
    width = index.shape[1] if valid is None else int(valid[row].sum())
    made = []
    for column in range(width):
        own = int(index[row, column])
        members = (into[row] == column).nonzero()[:, 0].tolist()
        assert own in members
        made.append([own] + [member for member in members if member != own])
    return made


@pytest.mark.parametrize("tokens", [2, 3, 9, 16])
@pytest.mark.parametrize("protected", [0, 1, 2, 5])
def test_equals_the_loop(tokens: int, protected: int) -> None:
    metric = torch.randn(3, tokens, 6, generator=torch.Generator().manual_seed(tokens))
    for count in range(max((tokens - protected) // 2, 0) + 1):
        index, valid, into = bipartite_match(metric, count, protected=protected)
        assert valid is None
        for row in range(3):
            want = [[group[0], *sorted(group[1:])] for group in matched(metric[row], count, min(protected, tokens))]
            assert groups(index, into, None, row) == want


def test_rows_of_different_length_are_their_own() -> None:
    metric = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0))
    valid = torch.arange(12) < torch.tensor([12, 7])[:, None]
    index, kept, into = bipartite_match(metric, torch.tensor([4, 3]), valid=valid)
    assert kept is not None and kept.sum(1).tolist() == [8, 4]
    assert groups(index, into.where(valid, torch.tensor(-1)), kept, 0) == groups(*_alone(metric[0:1], 4), 0)
    assert groups(index, into.where(valid, torch.tensor(-1)), kept, 1) == groups(*_alone(metric[1:, :7], 3), 0)


def _alone(metric: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, None]:
    index, _, into = bipartite_match(metric, count)
    return index, into, None


def test_segments_do_not_mix_and_stay_together() -> None:
    metric = torch.ones(1, 8, 3)
    segment = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2]])
    index, valid, into = bipartite_match(metric, torch.tensor([8]), segment=segment)
    left = segment[0][index[0][valid[0]]]
    assert left.tolist() == sorted(left.tolist())
    for column, own in enumerate(index[0][valid[0]].tolist()):
        assert set(segment[0][into[0] == column].tolist()) == {int(segment[0, own])}
    # tokens 0 and 2 go into 1; 4 and 6 into 3; 5 stays; 7 is alone
    assert groups(index, into, valid, 0) == [[1, 0, 2], [3, 4, 6], [5], [7]]


def test_ties_go_to_the_lower_place() -> None:
    index, _, into = bipartite_match(torch.ones(1, 6, 2), 1)
    assert groups(index, into, None, 0) == [[2], [4], [1, 0], [3], [5]]
