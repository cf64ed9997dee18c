"""Masks brought from full length to what a layer stores, against masks built entry by entry."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vlm_eff.core.errors import CapabilityError
from vlm_eff.models.masks import map_mask, plain_first
from vlm_eff.models.token_map import TokenMap

LENGTH = 8
KEEP = torch.tensor([[True, True, False, True, False, True, True, True], [True] * 4 + [False] + [True] * 3])
SURVIVORS = TokenMap.identity(2, LENGTH, torch.device("cpu")).narrow(KEEP)[0]
LOWEST = torch.finfo(torch.float32).min


def full_mask(padding: int = 2) -> Tensor:
    """Causal, the first `padding` columns of row 0 hidden [2, 1, S, S]."""
    mask = torch.ones(2, 1, LENGTH, LENGTH).tril().bool()
    mask[0, :, :, :padding] = False
    return mask


def additive(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, LOWEST)


def entry_by_entry(mask: Tensor) -> Tensor:
    """What row q and column k of the mapped mask have to say, fillers hidden."""
    size = SURVIVORS.size
    made = torch.zeros(2, 1, size, size, dtype=torch.bool)
    for row in range(2):
        for query in range(size):
            for key in range(size):
                place = SURVIVORS.index[row, query], SURVIVORS.index[row, key]
                made[row, 0, query, key] = mask[row, 0][place] and SURVIVORS.valid[row, key]
    return made


def mapped(mask: Any, valid: Tensor | None = SURVIVORS.valid) -> Any:
    return map_mask(mask, SURVIVORS.index, valid, SURVIVORS, LENGTH, LENGTH)


def test_a_boolean_mask_is_gathered_in_rows_and_columns() -> None:
    assert torch.equal(mapped(full_mask()), entry_by_entry(full_mask()))


def test_an_additive_mask_is_gathered_and_fillers_get_the_lowest_value() -> None:
    got = mapped(additive(full_mask()))
    assert torch.equal(got, additive(entry_by_entry(full_mask())))


def test_a_mask_of_each_head_keeps_its_heads() -> None:
    both = torch.cat([full_mask(), full_mask(3)], 1)
    got = mapped(both)
    assert got.shape[1] == 2
    assert torch.equal(got[:, :1], mapped(full_mask()))
    assert torch.equal(got[:, 1:], mapped(full_mask(3)))


def test_one_mask_for_all_rows_is_expanded() -> None:
    shared = full_mask(0)[1:]
    assert torch.equal(mapped(shared), mapped(shared.expand(2, -1, -1, -1)))


def test_a_padding_mask_keeps_its_dtype_and_hides_fillers() -> None:
    padding = torch.ones(2, LENGTH, dtype=torch.long)
    padding[0, :2] = 0
    got = mapped(padding)
    assert got.dtype == torch.long
    want = [[int(padding[r, i]) * int(v) for i, v in zip(*pair, strict=True)] for r, pair in enumerate(_pairs())]
    assert got.tolist() == want


def _pairs() -> list[tuple[list[int], list[bool]]]:
    return [(i.tolist(), v.tolist()) for i, v in zip(SURVIVORS.index, SURVIVORS.valid, strict=True)]


def test_no_mask_stays_none_while_there_is_no_filler() -> None:
    keep = torch.ones(2, LENGTH, dtype=torch.bool)
    keep[:, 3] = False
    even = TokenMap.identity(2, LENGTH, torch.device("cpu")).narrow(keep)[0]
    assert map_mask(None, even.index, None, even, LENGTH, LENGTH) is None


def test_no_mask_becomes_causal_where_fillers_must_be_hidden() -> None:
    got = mapped(None)
    want = entry_by_entry(torch.ones(2, 1, LENGTH, LENGTH).tril().bool())
    assert torch.equal(got[SURVIVORS.valid[:, None]], want[SURVIVORS.valid[:, None]])
    assert bool(got.any(-1).all()), "every row sees something"


def test_decoding_hides_the_fillers_of_the_cache() -> None:
    keys = torch.cat([SURVIVORS.index, torch.tensor([[8, 9]] * 2)], 1)
    valid = torch.cat([SURVIVORS.valid, torch.ones(2, 2, dtype=torch.bool)], 1)
    got = map_mask(None, keys, valid, None, 10, 1)
    assert got is not None
    assert torch.equal(got[:, 0, 0], valid)
    assert map_mask(None, keys, None, None, 10, 1) is None


def test_a_later_call_with_several_tokens_stays_causal() -> None:
    """None means causal from the top left to transformers; behind a cache that must be spelled out."""
    keys = torch.cat([SURVIVORS.index[1:], torch.tensor([[8, 9, 10]])], 1)
    got = map_mask(None, keys, None, None, 11, 3)
    assert got is not None
    assert torch.equal(got[0, 0], keys <= torch.tensor([[8], [9], [10]]))


def test_a_sliding_mask_does_not_begin_at_position_zero() -> None:
    """A mask over the last 4 of 8 positions: what lies before them is hidden."""
    window = torch.ones(2, 1, 1, 4, dtype=torch.bool)
    keys = torch.tensor([[1, 3, 5, 7], [4, 5, 6, 7]])
    got = map_mask(window, keys, None, None, LENGTH, 1)
    assert got is not None
    assert got[:, 0, 0].tolist() == [[False, False, True, True], [True] * 4]


@pytest.mark.parametrize("mask", ["causal", {"full_attention": None}, 3], ids=lambda mask: type(mask).__name__)
def test_a_mask_of_another_kind_is_refused(mask: Any) -> None:
    with pytest.raises(CapabilityError, match="attention mask of type"):
        mapped(mask)


def test_a_mask_that_is_causal_with_padding_has_a_first_key() -> None:
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    real[0, :2] = False
    for mask in (full_mask(), additive(full_mask())):
        # what padding sees is nobody's business
        mask = torch.cat([mask[:1], mask[1:]])
        mask[0, 0, 0, 5] = mask[1, 0, -1, 0]
        first = plain_first(mask, real)
        assert first is not None and first.tolist() == [2, 0]
    # older keys in front, of which three are padding
    older = torch.cat([torch.ones(2, 1, LENGTH, 5, dtype=torch.bool), full_mask(0)], 3)
    older[1, ..., :3] = False
    first = plain_first(older, real.fill_(True))
    assert first is not None and first.tolist() == [0, 3]
    shared = plain_first(full_mask(0)[1:], real)
    assert shared is not None and shared.tolist() == [0, 0]


def _window(mask: Tensor) -> Tensor:
    return mask & ~torch.ones_like(mask).tril(-4)


def _ahead(mask: Tensor) -> Tensor:
    mask[1, 0, 2, 3] = True
    return mask


def _hole(mask: Tensor) -> Tensor:
    mask[..., 4] = False
    return mask


def _soft(mask: Tensor) -> Tensor:
    made = additive(mask)
    made[1, 0, 6, 2] = -0.5
    return made


def _by_head(mask: Tensor) -> Tensor:
    return torch.cat([mask, mask], 1)


@pytest.mark.parametrize("change", [_window, _ahead, _hole, _soft, _by_head, lambda mask: mask[:, 0, 0]])
def test_a_mask_that_says_more_has_none(change: Any) -> None:
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    real[0, :2] = False
    assert plain_first(change(full_mask()), real) is None
