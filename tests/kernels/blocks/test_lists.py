"""Lists of blocks and the rule inside them, against loops over single pairs."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from vlm_eff.core.errors import InputError
from vlm_eff.kernels.blocks import BlockLists, Rule

QUERIES, KEYS, ROWS, COLUMNS = 11, 14, 4, 3


def some_lists(seed: int = 0, batch: int = 2, heads: int = 3) -> BlockLists:
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(0, 3, (batch, heads, 3, 5), generator=generator)
    return BlockLists.of_masks(kind == 1, kind == 2, ROWS, COLUMNS)


def rules() -> list[Rule]:
    first = torch.tensor([0, 5], dtype=torch.int32)
    text = (torch.arange(2 * KEYS).view(2, KEYS) % 4 == 0).to(torch.uint8)
    return [
        Rule(),
        Rule(causal=False),
        Rule(first=first),
        Rule(window=3),
        Rule(first=first, text=text, sinks=2),
        Rule(causal=False, first=first, text=text.bool(), sinks=1, window=2),
    ]


def sees(rule: Rule, b: int, i: int, j: int) -> bool:
    first = 0 if rule.first is None else int(rule.first[b])
    if j < first or (rule.causal and j > i):
        return False
    if rule.text is None and rule.window is None:
        return True
    if rule.text is not None and (rule.text[b, i] or rule.text[b, j]):
        return True
    return j < first + rule.sinks or (rule.window is not None and i - j < rule.window)


@pytest.mark.parametrize("rule", rules())
def test_the_rule_is_what_it_says(rule: Rule) -> None:
    made = rule.allowed(QUERIES, KEYS)
    for b, row, j in itertools.product(range(2), range(QUERIES), range(KEYS)):
        assert bool(made.expand(2, -1, -1, -1)[b, 0, row, j]) == sees(rule, b, row + KEYS - QUERIES, j), (b, row, j)
    assert torch.equal(rule.allowed(QUERIES, KEYS, begin=3, end=8), made[:, :, 3:8])


def with_a_line(lists: BlockLists) -> BlockLists:
    """Key 7 as a single key of every block of queries that does not list its block, 2."""
    everything = lists.mask(QUERIES, KEYS, Rule(causal=False))
    count = (~everything[:, :, ::ROWS, 7]).int().contiguous()
    return dataclasses.replace(lists, column_count=count, column_index=torch.full((*count.shape, 2), 7).int())


def wrong_pairs(lists: BlockLists, made: torch.Tensor, rule: Rule) -> list[tuple[int, ...]]:
    wrong = []
    for b, h, row, j in itertools.product(range(2), range(3), range(QUERIES), range(KEYS)):
        a, block = row // ROWS, j // COLUMNS
        full = block in lists.full_index[b, h, a, : lists.full_count[b, h, a]]
        part = block in lists.part_index[b, h, a, : lists.part_count[b, h, a]]
        if lists.column_count is not None and lists.column_index is not None:
            part |= j in lists.column_index[b, h, a, : lists.column_count[b, h, a]]
        if bool(made[b, h, row, j]) != (full or (part and sees(rule, b, row + KEYS - QUERIES, j))):
            wrong.append((b, h, row, j))
    return wrong


@pytest.mark.parametrize("rule", rules())
def test_the_mask_is_the_union_of_what_is_listed(rule: Rule) -> None:
    lists = with_a_line(some_lists())
    lists.check(2, 3, QUERIES, 15, values=True)
    made = lists.mask(QUERIES, KEYS, rule)
    assert not wrong_pairs(lists, made, rule)
    assert made.any() and not made.all()
    assert torch.equal(lists.mask(QUERIES, KEYS, rule, begin=2, end=9), made[:, :, 2:9])
    some = torch.tensor([1, 7, 13])
    assert torch.equal(lists.mask(QUERIES, KEYS, rule, begin=5, keys=some), made[:, :, 5:, some])
    listed = lists.mask(QUERIES, KEYS, Rule(causal=False), begin=4, end=8)
    assert torch.equal(lists.keys(KEYS, 4, 8), listed.flatten(0, 2).any(0))


def test_saboteur_a_count_that_is_off_by_one_is_seen() -> None:
    lists = with_a_line(some_lists())
    for name in ("full_count", "part_count", "column_count"):
        fewer = dataclasses.replace(lists, **{name: (getattr(lists, name) - 1).clamp(min=0)})
        assert wrong_pairs(lists, fewer.mask(QUERIES, KEYS, Rule(causal=False)), Rule(causal=False))


def test_of_masks_lists_in_order_and_round_trips() -> None:
    kind = torch.randint(0, 3, (2, 3, 3, 5), generator=torch.Generator().manual_seed(1))
    lists = BlockLists.of_masks(kind == 1, kind == 2, ROWS, COLUMNS)
    for b, h, a in itertools.product(range(2), range(3), range(3)):
        for which, count, index in ((1, lists.full_count, lists.full_index), (2, lists.part_count, lists.part_index)):
            assert index[b, h, a, : count[b, h, a]].tolist() == (kind[b, h, a] == which).nonzero()[:, 0].tolist()
    assert all(tensor.dtype == torch.int32 and tensor.is_contiguous() for tensor in lists.tensors)
    lists.check(2, 3, QUERIES, 15, values=True)


def test_density_of_everything_and_of_half() -> None:
    blocks = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    lists = BlockLists.of_masks(blocks.tril(-1), torch.eye(8, dtype=torch.bool)[None, None], 32, 32)
    # the half of each diagonal block above the diagonal is computed too
    assert lists.density(256).item() == pytest.approx(36 * 1024 / (256 * 257 / 2))
    few = BlockLists.of_masks(blocks & False, torch.eye(8, dtype=torch.bool)[None, None], 32, 32)
    assert few.density(256).item() == pytest.approx(8 * 1024 / (256 * 257 / 2))


def test_check_names_what_does_not_fit() -> None:
    lists = some_lists()
    lists.check(2, 3, QUERIES, 15, values=True)
    for sizes in ((3, 3, QUERIES, KEYS), (2, 4, QUERIES, KEYS), (2, 3, 20, KEYS)):
        with pytest.raises(InputError, match="Build the lists for this call"):
            lists.check(*sizes)
    with pytest.raises(InputError, match="both or none"):
        dataclasses.replace(lists, column_count=lists.full_count).check(2, 3, QUERIES, KEYS)
    with pytest.raises(InputError, match="int64"):
        dataclasses.replace(lists, full_index=lists.full_index.long()).check(2, 3, QUERIES, KEYS)


def test_check_of_values_finds_each_broken_promise() -> None:
    lists = some_lists()
    everything = torch.ones(2, 3, 3, 5, dtype=torch.bool)
    twice = BlockLists.of_masks(everything, everything, ROWS, COLUMNS)
    with pytest.raises(InputError, match="listed twice"):
        twice.check(2, 3, QUERIES, 15, values=True)
    with pytest.raises(InputError, match="List it in part"):
        BlockLists.of_masks(everything, ~everything, ROWS, COLUMNS).check(2, 3, QUERIES, KEYS, values=True)
    with pytest.raises(InputError, match="Build the lists anew"):
        dataclasses.replace(lists, part_index=lists.part_index + 4).check(2, 3, QUERIES, 15, values=True)
    with pytest.raises(InputError, match="Build the lists anew"):
        dataclasses.replace(lists, part_count=lists.part_count + 5).check(2, 3, QUERIES, 15, values=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"sinks": -1},
        {"window": 0},
        {"sinks": 4},
        {"first": torch.zeros(2)},
        {"text": torch.zeros(2, 3)},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(settings: dict) -> None:
    with pytest.raises(InputError):
        Rule(**settings)


def test_a_rule_of_another_size_is_refused() -> None:
    rule = rules()[4]
    rule.check(2, KEYS)
    with pytest.raises(InputError):
        rule.check(2, KEYS + 1)
    with pytest.raises(InputError):
        rule.check(3, KEYS)
