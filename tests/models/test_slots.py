"""What a cache layer stores, against lists of positions."""

import pytest
import torch

from vlm_eff.core.errors import StateError
from vlm_eff.models.slots import Slots
from vlm_eff.models.token_map import TokenMap

CPU = torch.device("cpu")


def stored(slots: Slots) -> list[list[int]]:
    index, valid = slots.positions()
    assert index.shape[1] == slots.stored
    return [row[ok].tolist() for row, ok in zip(index, valid, strict=True)]


def survivors(*gone: set[int], length: int = 10) -> TokenMap:
    keep = torch.ones(len(gone), length, dtype=torch.bool)
    for row, places in enumerate(gone):
        keep[row, list(places)] = False
    return TokenMap.identity(len(gone), length, CPU).narrow(keep)[0]


def pruned() -> Slots:
    return Slots.plain(2, 0, CPU).append(survivors({2, 3}, {5}), 5, None)


def test_a_plain_layer_stores_everything() -> None:
    assert stored(Slots.plain(2, 4, CPU)) == [[0, 1, 2, 3]] * 2
    assert Slots.plain(2, 4, CPU).logical == 4


def test_survivors_and_later_tokens_are_appended() -> None:
    slots = pruned()
    assert stored(slots) == [[0, 1, 4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 6, 7, 8, 9]]
    assert (slots.logical, slots.stored, slots.ragged) == (10, 9, True)
    grown = slots.grow(2)
    assert stored(grown) == [[*row, 10, 11] for row in stored(slots)]
    assert grown.logical == 12


def test_a_second_prefill_counts_on_from_the_first() -> None:
    slots = pruned().grow(2).append(survivors({1}, {0, 4}, length=6), 4, None)
    assert stored(slots) == [
        [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 16, 17],
        [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 13, 14, 15, 17],
    ]
    assert slots.logical == 18


def test_cropping_takes_from_the_tail_alone() -> None:
    slots = pruned()
    assert stored(slots.crop(4)) == [[0, 1, 4, 5], [0, 1, 2, 3, 4]]
    assert slots.crop(4).logical == 6
    assert stored(slots.crop(2).grow(1)) == [[0, 1, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 6, 7, 8]]
    with pytest.raises(StateError, match="at most 4 positions"):
        slots.crop(5)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 7, 9, 20])
def test_a_sliding_layer_keeps_the_last_entries(count: int) -> None:
    slots = pruned()
    index, valid = slots.positions()
    kept = slots.keep_last(count)
    assert kept.stored == min(count, slots.stored)
    assert kept.logical == slots.logical
    last_index, last_valid = kept.positions()
    assert torch.equal(last_index, index[:, -count:])
    assert torch.equal(last_valid, valid[:, -count:])


def test_rows_may_be_reordered_and_repeated() -> None:
    slots = pruned()
    both = stored(slots)
    assert stored(slots.select(torch.tensor([1, 0, 1]))) == [both[1], both[0], both[1]]


def test_shifts_follow_their_rows() -> None:
    slots = Slots.plain(2, 0, CPU).append(survivors({2, 3}, {5}), 5, torch.tensor([2, 1]))
    assert slots.select(torch.tensor([1, 1])).shift.tolist() == [1, 1]  # type: ignore[union-attr]
    assert slots.grow(3).shift.tolist() == [2, 1]  # type: ignore[union-attr]


def test_revived_positions_join_behind_what_is_stored_and_the_tail_begins_anew() -> None:
    index, valid = torch.tensor([[4, 2], [3, 0]]), torch.tensor([[True, True], [True, False]])
    made = Slots.plain(2, 6, torch.device("cpu")).join(index, valid, 3, ragged=True)
    positions, known = made.positions()
    assert positions.tolist() == [[0, 1, 2, 3, 4, 5, 4, 2, 6, 7, 8], [0, 1, 2, 3, 4, 5, 3, 0, 6, 7, 8]]
    assert known[1].tolist() == [True] * 7 + [False] + [True] * 3
    assert (made.logical, made.stored, made.ragged) == (9, 11, True)
    assert made.crop(3).positions()[0].tolist() == [row[:-3] for row in positions.tolist()]
    with pytest.raises(StateError):
        made.crop(4)


def test_a_seal_moves_the_beginning_of_the_tail_and_nothing_else() -> None:
    slots = Slots.plain(1, 6, torch.device("cpu"))
    sealed = slots.seal(4)
    assert torch.equal(sealed.positions()[0], slots.positions()[0])
    assert (sealed.start, sealed.logical, sealed.stored) == (4, 6, 6)
    assert sealed.seal(2) is sealed
    sealed.crop(2)
    with pytest.raises(StateError):
        sealed.crop(3)
