"""Ranks within and between modalities."""

import pytest
import torch

from vlm_eff.importance.entry_order import lexicographic, within_modality

KINDS = torch.tensor([[1, 0, 1, 0, 1, 2]])
SCORES = torch.tensor([[[9.0, 1, 8, 3, 9, 7]]])
EVERY = torch.ones(1, 6, dtype=torch.bool)


def order(scores: torch.Tensor) -> list[int]:
    return scores[0, 0].argsort(descending=True, stable=True).tolist()


def test_text_comes_first_and_images_keep_their_order() -> None:
    assert order(lexicographic(SCORES, KINDS, EVERY)) == [3, 1, 0, 4, 2, 5]
    # whatever the size of the scores: an offset would lose it
    assert order(lexicographic(SCORES * 1e-30, KINDS, EVERY)) == [3, 1, 0, 4, 2, 5]
    assert order(lexicographic(SCORES * 1e30, KINDS, EVERY)) == [3, 1, 0, 4, 2, 5]


@pytest.mark.parametrize("seed", range(5))
def test_lexicographic_is_python_sorting(seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (2, 3, 11), generator=made).float() - 2
    kinds = torch.randint(0, 3, (2, 11), generator=made)
    present = torch.rand(2, 3, 11, generator=made) < 0.7
    got = lexicographic(scores, kinds, present)
    for b in range(2):
        for h in range(3):
            columns = [j for j in range(11) if present[b, h, j]]
            want = sorted(columns, key=lambda j: (int(kinds[b, j]), -float(scores[b, h, j]), j))
            assert [int(-got[b, h, j]) for j in want] == list(range(len(want)))
            assert bool((got[b, h][~present[b, h]] == -11).all()) and bool((got[b, h][present[b, h]] > -11).all())
            kept = within_modality(scores, kinds, present)[b, h]
            for kind in range(3):
                own = [j for j in columns if kinds[b, j] == kind]
                ranked = sorted(own, key=lambda j: (-float(scores[b, h, j]), j))
                assert [float(kept[j]) for j in ranked] == pytest.approx([1 - r / len(own) for r in range(len(own))])
            assert not bool(kept[~present[b, h]].any())


def test_half_of_the_ranks_is_half_of_each_modality() -> None:
    kinds = torch.tensor([[0, 0, 1, 1, 1, 1]])
    scores = torch.tensor([[[0.0, 0, 5, 6, 7, 8]]])
    assert order(within_modality(scores, kinds, EVERY))[:3] == [0, 5, 4]


def test_nothing_to_rank() -> None:
    empty = torch.zeros(1, 2, 0)
    assert lexicographic(empty, KINDS[:, :0], EVERY[:, :0]).shape == empty.shape
    assert within_modality(empty, KINDS[:, :0], EVERY[:, :0]).shape == empty.shape
