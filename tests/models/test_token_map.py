"""The map of survivors, alone."""

import pytest
import torch
from torch import Tensor

from vlm_eff.models.token_map import TokenMap, gather_slots


def start(rows: int = 3, length: int = 9) -> TokenMap:
    return TokenMap.identity(rows, length, torch.device("cpu"))


def ragged_keep() -> Tensor:
    keep = torch.ones(3, 9, dtype=torch.bool)
    keep[0, [2, 3, 6]] = False
    keep[1, 4] = False
    return keep


def kept(survivors: TokenMap) -> list[list[int]]:
    return [row[ok].tolist() for row, ok in zip(survivors.index, survivors.valid, strict=True)]


def test_identity_holds_everything() -> None:
    assert kept(start()) == [list(range(9))] * 3
    assert not start().ragged
    assert start().fillers == 0


def test_narrowing_keeps_order_and_puts_fillers_first() -> None:
    made, order = start().narrow(ragged_keep())
    assert kept(made) == [[0, 1, 4, 5, 7, 8], [0, 1, 2, 3, 5, 6, 7, 8], list(range(9))]
    assert made.ragged
    assert made.size == 9
    assert made.fillers == 4
    assert torch.equal(made.valid, made.valid.sort(1).values), "fillers come first"
    assert made.index[:, -1].tolist() == [8, 8, 8]
    assert torch.equal(order, made.index)


def test_equal_counts_need_no_fillers() -> None:
    keep = torch.ones(2, 6, dtype=torch.bool)
    keep[0, 1] = keep[1, 4] = False
    made, _ = start(2, 6).narrow(keep)
    assert not made.ragged
    assert made.size == 5
    assert bool(made.valid.all())


@pytest.mark.parametrize("seed", range(6))
def test_narrowing_twice_is_narrowing_once_by_both(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.rand(3, 9, generator=generator) < 0.7 for _ in range(2))
    first[:, -1] = second[:, -1] = True
    once, _ = start().narrow(first & second)
    half, _ = start().narrow(first)
    twice, order = half.narrow(second.gather(1, half.index))
    assert kept(twice) == kept(once)
    assert torch.equal(half.index.gather(1, order), twice.index)


@pytest.mark.parametrize("shape", [(3, 9), (3, 9, 4), (3, 9, 2, 5)])
def test_scatter_undoes_gather_and_leaves_zeros(shape: tuple[int, ...]) -> None:
    full = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    made, _ = start().narrow(ragged_keep())
    back = made.scatter(made.gather(full))
    assert torch.equal(back[ragged_keep()], full[ragged_keep()])
    assert bool((back[~ragged_keep()] == 0).all())


def test_fillers_never_overwrite_a_survivor() -> None:
    made, _ = start().narrow(ragged_keep())
    tensor = torch.where(made.valid, made.index.float(), torch.nan)[..., None]
    back = made.scatter(tensor)[..., 0]
    assert torch.equal(back[ragged_keep()], torch.arange(9.0).expand(3, -1)[ragged_keep()])
    assert not back.isnan().any()


def test_gather_works_on_other_dimensions_and_shared_rows() -> None:
    made, _ = start().narrow(ragged_keep())
    shared = torch.arange(9)[None]
    assert torch.equal(made.gather(shared), made.index)
    square = torch.randn(3, 2, 9, 9)
    columns = gather_slots(square, made.index, 3)
    for row in range(3):
        assert torch.equal(columns[row], square[row][:, :, made.index[row]])


def test_physical_slots_point_back() -> None:
    made, _ = start().narrow(ragged_keep())
    for row, logical in enumerate(kept(made)):
        slots = made.physical(torch.tensor([logical] * 3))[row]
        assert made.index[row, slots].tolist() == logical
        assert bool(made.valid[row, slots].all())
