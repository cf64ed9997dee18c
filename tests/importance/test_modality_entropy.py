"""Who uses an entry: entropy over the modalities of the queries."""

import math

import pytest
import torch

from tests.importance.entries import Entries, golden, near, random_entries, same_alone, worked
from vlm_eff.core.errors import ConfigError, StateError
from vlm_eff.importance.modality_entropy import ModalitySums, entropy, entropy_scores, regularised_scores


def sums(entries: Entries, chunk: int = 100) -> ModalitySums:
    made = ModalitySums(entries.groups, 2)
    for first in range(0, entries.attention.shape[2], chunk):
        part = entries.only_rows(first, first + chunk)
        made.add(*part.rows, part.row_modality)
    return made


def test_worked_example() -> None:
    near(entropy(sums(worked()).means())[0, 0], golden(".6856 .5463 .6620 .6721 .6069 0 0 0"))


@pytest.mark.parametrize("seed", range(3))
def test_means_are_those_of_a_double_loop(seed: int) -> None:
    entries = random_entries(seed)
    means = sums(entries).means()
    for b in range(2):
        for kind in range(2):
            rows = entries.row_valid[b] & (entries.row_modality[b] == kind)
            a = entries.attention[b][:, rows].masked_fill(~entries.looks[b][rows], 0.0)
            want = a.sum(1).view(2, 2, -1).sum(1) / max(int(rows.sum()), 1)
            torch.testing.assert_close(means[b, :, :, kind], want)
    got = entropy(means)
    assert bool(((got >= 0) & (got <= math.log(2) + 1e-6)).all())


def test_use_by_all_equally_is_the_most_and_by_one_is_none() -> None:
    means = torch.tensor([[[[1.0, 1, 1], [0, 2, 0], [0, 0, 0], [1e-9, 1e-9, 1e-9]]]])
    torch.testing.assert_close(entropy(means)[0, 0], torch.tensor([1.0, 0, 0, 1]) * math.log(3))


def test_copies_of_all_queries_of_a_modality_change_nothing() -> None:
    entries = worked()
    whole, text = sums(entries), entries.row_modality[0] == 0
    again = sums(entries)
    kinds = entries.row_modality[:, text]
    again.add(entries.attention[:, :, text], entries.row_valid[:, text], entries.looks[:, text], kinds)
    torch.testing.assert_close(again.means(), whole.means())
    assert not torch.allclose(again.mass(), whole.mass())


def test_chunks_of_any_size_give_the_same_and_the_cache_may_grow() -> None:
    entries = random_entries(4, dtype=torch.float32)
    for chunk in (1, 2, 5):
        assert torch.equal(entropy(sums(entries, chunk).means()), entropy(sums(entries).means()))
    entries, made = worked(), ModalitySums(1, 2)
    first = slice(0, 5)
    kinds = entries.row_modality[:, first]
    made.add(entries.attention[:, :, first, first], entries.row_valid[:, first], entries.looks[:, first, first], kinds)
    rest = entries.only_rows(5)
    made.add(*rest.rows, rest.row_modality)
    torch.testing.assert_close(made.means(), sums(entries).means())


def test_without_a_weight_the_mass_ranks_and_with_one_the_entropy_counts() -> None:
    entries = random_entries(6)
    made = sums(entries)
    plain = regularised_scores(made.means(), made.mass(), entries.present, 0.0)
    torch.testing.assert_close(plain, (made.mass() / made.mass().sum(-1, keepdim=True)).float())
    gained = regularised_scores(made.means(), made.mass(), entries.present, 0.1) - plain
    torch.testing.assert_close(gained, 0.1 * entropy(made.means()) / math.log(2))
    # one modality has no entropy to speak of
    single = ModalitySums(2, 1)
    single.add(*entries.rows, torch.zeros_like(entries.row_modality))
    torch.testing.assert_close(regularised_scores(single.means(), single.mass(), entries.present), plain)


def test_the_question_is_not_the_first_to_go() -> None:
    entries = worked()
    score = entropy_scores(sums(entries).means(), entries.modality, entries.present)[0, 0]
    # text 0, 5, 6, 7 and image 1..4, each ranked for itself; ties go to the lower index
    assert score.tolist() == [1.0, 0.25, 0.75, 1.0, 0.5, 0.75, 0.5, 0.25]


def test_a_row_gets_what_it_gets_alone() -> None:
    for seed in range(4):
        entries = random_entries(seed)
        same_alone(entries, lambda e: entropy(sums(e).means()))
        same_alone(entries, lambda e: entropy_scores(sums(e).means(), e.modality, e.present))
        same_alone(entries, lambda e: regularised_scores(sums(e).means(), sums(e).mass(), e.present))


def test_misuse_is_said() -> None:
    with pytest.raises(ConfigError):
        ModalitySums(1, 0)
    with pytest.raises(StateError):
        ModalitySums(1, 2).means()
