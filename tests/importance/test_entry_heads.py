"""Scores where the key heads of a layer store different entries, as they do after an eviction."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.importance.entries import Entries, random_entries
from vlm_eff.importance.entry_scores import last_row, received, unread
from vlm_eff.importance.head_budgets import head_counts
from vlm_eff.importance.layer_signals import cross_entropy, sparsity

SCORES = {
    "received": lambda e: received(*e.scored),
    "unread": lambda e: unread(*e.scored),
    "unread of a length": lambda e: unread(*e.scored, length=torch.tensor([5, 7])),
    "last_row": lambda e: last_row(*e.scored),
    "sparsity": lambda e: sparsity(*e.rows, 0.2),
    "cross": lambda e: cross_entropy(*e.rows, e.row_modality, e.modality),
}
PER_HEAD = ("received", "unread", "sparsity")


def by_head(entries: Entries) -> Entries:
    """The same, with what a row may look at said head by head."""
    return replace(entries, looks=entries.looks[:, None].expand(-1, entries.groups, -1, -1))


def uneven(entries: Entries) -> Entries:
    """The second key head lacks the entries of odd places, and what is there shares out the attention."""
    looks = by_head(entries).looks.clone()
    looks[:, 1, :, 1::2] = False
    hidden = ~looks.repeat_interleave(entries.attention.shape[1] // entries.groups, 1)
    attention = entries.logits.masked_fill(hidden, -torch.inf).softmax(-1)
    return replace(entries, looks=looks, attention=attention)


def one_head(entries: Entries, head: int) -> Entries:
    share = entries.attention.shape[1] // entries.groups
    cut = slice(head * share, (head + 1) * share)
    return replace(entries, attention=entries.attention[:, cut], looks=entries.looks[:, head], groups=1)


@pytest.mark.parametrize("name", SCORES)
def test_saying_it_head_by_head_changes_nothing(name: str) -> None:
    entries = random_entries(3)
    assert torch.equal(SCORES[name](by_head(entries)), SCORES[name](entries))


@pytest.mark.parametrize("name", PER_HEAD)
def test_a_head_is_scored_by_what_it_stores(name: str) -> None:
    entries = uneven(random_entries(3))
    made: Tensor = SCORES[name](entries)
    share = made.shape[1] // entries.groups
    for head in range(entries.groups):
        torch.testing.assert_close(
            made[:, head * share : (head + 1) * share], SCORES[name](one_head(entries, head)), equal_nan=True
        )


def test_lengths_may_differ_between_heads() -> None:
    entries = uneven(random_entries(3))
    length = torch.tensor([[9, 4], [7, 3]])
    made = unread(*entries.scored, length=length)
    for head in range(2):
        want = unread(*one_head(entries, head).scored, length=length[:, head])
        assert torch.equal(made[:, head : head + 1], want)
    assert not torch.equal(made, unread(*entries.scored, length=length[:, 0]))


def test_a_total_that_the_heads_do_not_divide_is_met() -> None:
    scores = torch.tensor([[[9.0, 8, 7, 1], [3, 2, 1, 0]]])
    there = torch.ones(1, 4, dtype=torch.bool)
    assert head_counts(scores, there, 0, 0.2, total=torch.tensor([3])).tolist() == [[3, 0]]
    assert head_counts(scores, there, 0, 1.0, total=torch.tensor([5])).tolist() == [[3, 2]]
