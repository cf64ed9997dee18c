"""The mask of a layer whose heads store different entries, against a loop over every pair."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vlm_eff.core.errors import CapabilityError
from vlm_eff.models.kv.masks import Wanted, mask_of_heads

# 2 rows, 2 key heads, 4 stored entries and 2 new ones; -1 is a filler; 7 positions before the call
KEYS = torch.tensor(
    [[[0, 2, 5, -1, 7, 8], [1, 2, 3, 6, 7, 8]], [[3, 4, 5, 6, 7, 8], [2, 5, 6, -1, 7, 8]]], dtype=torch.int32
)
REAL = torch.tensor([[True] * 9, [False, False, False, *[True] * 6]])
HEADS, PAST, LENGTH = 4, 7, 2


def wanted(*, ragged: bool = True, length: int = LENGTH, flash: bool = False) -> Wanted:
    return Wanted(HEADS, torch.float32, PAST, length, ragged, flash)


def loop(causal: bool = True) -> Tensor:
    made = torch.zeros(2, HEADS, LENGTH, 6, dtype=torch.bool)
    for row, head, query, key in torch.cartesian_prod(*(torch.arange(size) for size in made.shape)).tolist():
        place = int(KEYS[row, head // 2, key])
        made[row, head, query, key] = place >= 0 and bool(REAL[row, place]) and (place <= PAST + query or not causal)
    return made


def given(kind: str) -> Tensor | None:
    """The model's own mask of the full sequence."""
    looks = (torch.arange(9) <= PAST + torch.arange(LENGTH)[:, None]) & REAL[:, None]
    if kind == "columns":
        return REAL.long()
    made = looks[:, None]
    return made if kind == "bool" else torch.zeros(made.shape).masked_fill(~made, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("kind", ["bool", "float", "columns"])
def test_every_head_sees_its_own_entries(kind: str) -> None:
    made = mask_of_heads(given(kind), KEYS, None, None, wanted())
    assert made is not None
    sees = made if made.dtype == torch.bool else made == 0
    assert torch.equal(sees.expand(-1, HEADS, -1, -1), loop())


def test_no_mask_means_causal() -> None:
    made = mask_of_heads(None, KEYS[:1], None, None, wanted())
    assert made is not None
    assert torch.equal(made, loop()[:1])


def test_no_mask_stays_none_where_nothing_is_hidden() -> None:
    whole = torch.arange(6, dtype=torch.int32).expand(1, 2, -1)
    assert mask_of_heads(None, whole, None, None, wanted(ragged=False, length=1)) is None


def test_a_weight_adds_its_logarithm() -> None:
    weight = torch.ones(2, 2, 6)
    weight[0, 1, 2] = 3.0
    for kind in ("bool", "float"):
        made = mask_of_heads(given(kind), KEYS, weight, None, wanted())
        assert made is not None
        assert torch.allclose(made[0, 2:, :, 2], torch.tensor(math.log(3.0)))
        assert torch.equal(made[0, 2:, :, :2] == 0, loop()[0, 2:, :, :2])
        assert bool((made[0, 0, :, 3] < -1e30).all())


def test_flash_takes_columns_where_heads_agree() -> None:
    same = KEYS[:, :1].expand(-1, 2, -1)
    made = mask_of_heads(given("columns"), same, None, None, wanted(flash=True))
    assert made is not None
    assert made.tolist() == [[1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1]]
    alone = mask_of_heads(None, same, None, None, wanted(flash=True))
    assert alone is not None
    assert alone.tolist() == [[1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1]]
    assert mask_of_heads(None, KEYS, None, None, wanted(flash=True, ragged=False)) is None


def test_flash_refuses_what_it_cannot_hide() -> None:
    with pytest.raises(CapabilityError, match="heads that store different entries"):
        mask_of_heads(given("columns"), KEYS, None, None, wanted(flash=True))
    with pytest.raises(CapabilityError, match="merged entries"):
        mask_of_heads(None, KEYS, torch.full((2, 2, 6), 2.0), None, wanted(flash=True))
