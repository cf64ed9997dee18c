"""Who uses an entry: entropy over the modalities of the queries."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.importance.entries import Entries, golden, near, random_entries, same_alone, worked
from vlm_eff.importance.entry_scores import received
from vlm_eff.importance.modality_entropy import entropy, entropy_scores, regularised_scores


def means(entries: Entries, kinds: int = 2) -> Tensor:
    """What each entry gets from the rows of a modality on average [B, Hkv, S, kinds]."""
    made = []
    for kind in range(kinds):
        rows = entries.row_valid & (entries.row_modality == kind)
        got = received(entries.attention, rows, entries.looks, entries.groups)
        made.append(got / rows.sum(1).clamp(min=1)[:, None, None])
    return torch.stack(made, -1).double()


def test_worked_example() -> None:
    near(entropy(means(worked()))[0, 0], golden(".6856 .5463 .6620 .6721 .6069 0 0 0"))


@pytest.mark.parametrize("seed", range(3))
def test_means_are_those_of_a_double_loop(seed: int) -> None:
    entries = random_entries(seed)
    made = means(entries)
    for b in range(2):
        for kind in range(2):
            rows = entries.row_valid[b] & (entries.row_modality[b] == kind)
            a = entries.attention[b][:, rows].masked_fill(~entries.looks[b][rows], 0.0)
            want = a.sum(1).view(2, 2, -1).sum(1) / max(int(rows.sum()), 1)
            torch.testing.assert_close(made[b, :, :, kind], want)
    got = entropy(made)
    assert bool(((got >= 0) & (got <= math.log(2) + 1e-6)).all())


def test_use_by_all_equally_is_the_most_and_by_one_is_none() -> None:
    means = torch.tensor([[[[1.0, 1, 1], [0, 2, 0], [0, 0, 0], [1e-9, 1e-9, 1e-9]]]])
    torch.testing.assert_close(entropy(means)[0, 0], torch.tensor([1.0, 0, 0, 1]) * math.log(3))


def test_without_a_weight_the_mass_ranks_and_with_one_the_entropy_counts() -> None:
    entries = random_entries(6)
    made, mass = means(entries), received(*entries.scored).double()
    plain = regularised_scores(made, mass, entries.present, 0.0)
    torch.testing.assert_close(plain, (mass / mass.sum(-1, keepdim=True)).float())
    gained = regularised_scores(made, mass, entries.present, 0.1) - plain
    torch.testing.assert_close(gained, 0.1 * entropy(made) / math.log(2))
    # one modality has no entropy to speak of
    single = means(replace(entries, row_modality=torch.zeros_like(entries.row_modality)), kinds=1)
    torch.testing.assert_close(regularised_scores(single, mass, entries.present), plain)


def test_the_question_is_not_the_first_to_go() -> None:
    entries = worked()
    score = entropy_scores(means(entries), entries.modality, entries.present)[0, 0]
    # text 0, 5, 6, 7 and image 1..4, each ranked for itself; ties go to the lower index
    assert score.tolist() == [1.0, 0.25, 0.75, 1.0, 0.5, 0.75, 0.5, 0.25]


def test_a_row_gets_what_it_gets_alone() -> None:
    for seed in range(4):
        entries = random_entries(seed)
        same_alone(entries, lambda e: entropy(means(e)))
        same_alone(entries, lambda e: entropy_scores(means(e), e.modality, e.present))
        same_alone(entries, lambda e: regularised_scores(means(e), received(*e.scored), e.present))
