"""Who takes in whom: against a loop in float64, and the rules about who may."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.importance.mergeable import Entries, entries
from vlm_eff.importance.entry_assign import Assignment, assign_by_key
from vlm_eff.kernels.bipartite_match import fast


def assign(e: Entries) -> Assignment:
    return assign_by_key(e.keys, e.kept, e.present, e.modality, e.protected)


def by_hand(e: Entries) -> tuple[Tensor, Tensor]:
    target = torch.full(e.kept.shape, -1)
    like = torch.zeros(e.kept.shape, dtype=torch.float64)
    rows, heads, size = e.kept.shape
    for b, h, j in torch.cartesian_prod(*map(torch.arange, (rows, heads, size))).tolist():
        if not e.present[b, h, j]:
            continue
        if e.kept[b, h, j]:
            target[b, h, j], like[b, h, j] = j, 1
            continue
        if e.protected[b, h, j]:
            continue
        best = -2.0
        for i in range(size):
            may = e.kept[b, h, i] and e.present[b, h, i] and not e.protected[b, h, i]
            if may and e.modality[b, i] == e.modality[b, j]:
                one, other = e.keys[b, h, i].double(), e.keys[b, h, j].double()
                cosine = float(one @ other / (one.norm() * other.norm()))
                if cosine > best:
                    best, target[b, h, j], like[b, h, j] = cosine, i, cosine
    return target, like


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_a_loop(seed: int, dtype: torch.dtype) -> None:
    e = entries(seed, dtype)
    made, (target, like) = assign(e), by_hand(e)
    assert torch.equal(made.target, target)
    torch.testing.assert_close(made.cosine, like.float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("block", [1, 40, 200])
def test_any_size_of_block_gives_the_same(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    e = entries()
    want = assign(e)
    monkeypatch.setattr(fast, "_BLOCK", block)
    got = assign(e)
    assert torch.equal(got.target, want.target)
    torch.testing.assert_close(got.cosine, want.cosine)


def test_numbers_below_zero_are_numbers() -> None:
    e = entries()
    low = assign(replace(e, modality=e.modality - 7))
    assert torch.equal(low.target, assign(e).target) and torch.equal(low.cosine, assign(e).cosine)


@pytest.mark.parametrize("seed", range(5))
def test_never_across_modalities_and_never_into_what_may_not(seed: int) -> None:
    e = entries(seed)
    # what may not take anybody in looks exactly like everybody else
    e.keys[e.present & (e.protected | ~e.kept)] = torch.ones(4, dtype=torch.float64)
    target = assign(e).target
    goes = (target >= 0) & ~e.kept
    assert goes.any()
    into = target.clamp(min=0)
    assert (e.kept & e.present & ~e.protected).gather(2, into)[goes].all()
    kind = e.modality[:, None].expand(-1, 2, -1)
    assert torch.equal(kind.gather(2, into)[goes], kind[goes])
    assert (target[~e.present] == -1).all()
    assert (target[..., 7] == -1).all() and (e.present & ~e.kept & e.protected)[..., 7].all()
    # somebody had nobody to go into, and is evicted
    assert (target == -1)[2, 0, (e.modality[2] == 1) & e.present[2, 0] & ~e.kept[2, 0]].all()


def test_numbers_of_a_head_may_differ() -> None:
    e = entries()
    slots = torch.arange(12).expand(3, 2, 12) // 4
    target = assign(replace(e, modality=slots)).target
    goes = (target >= 0) & ~e.kept
    assert goes.any() and torch.equal(slots.gather(2, target.clamp(min=0))[goes], slots[goes])
    assert not torch.equal(target, assign(e).target)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    e = entries()
    together = assign(e)
    for row in range(3):
        alone = assign(e.row(row))
        assert torch.equal(alone.target[0], together.target[row])
        torch.testing.assert_close(alone.cosine[0], together.cosine[row])


def test_ties_go_to_the_lower_column(monkeypatch: pytest.MonkeyPatch) -> None:
    key = torch.randn(1, 1, 1, 80, generator=torch.Generator().manual_seed(0)).expand(1, 1, 103, 80).clone()
    kept = torch.arange(103)[None, None] % 3 == 2
    every, nothing = torch.ones_like(kept), torch.zeros_like(kept)
    made = assign_by_key(key, kept, every, torch.zeros(1, 103), nothing)
    assert (made.target[~kept] == 2).all()
    first = fast._first

    def rounded(like: Tensor, slack: float) -> tuple[Tensor, Tensor]:
        # as vectorised products of equal keys may come out
        return first(like - 1e-7 * (torch.arange(like.shape[2]) % 4 != 3), slack)

    monkeypatch.setattr(fast, "_first", rounded)
    made = assign_by_key(key, kept, every, torch.zeros(1, 103), nothing)
    assert (made.target[~kept] == 2).all()


def test_nothing_kept_nothing_evicted_nothing_there() -> None:
    e = entries()
    none, every = torch.zeros_like(e.kept), torch.ones_like(e.kept)
    assert (assign(replace(e, kept=none)).target == -1).all()
    column = torch.arange(12).expand(3, 2, 12)
    assert torch.equal(assign(replace(e, kept=every)).target, torch.where(e.present, column, -1))
    assert (assign(replace(e, present=none)).target == -1).all()
    empty = assign_by_key(e.keys[:, :, :0], none[:, :, :0], none[:, :, :0], e.modality[:, :0], none[:, :, :0])
    assert empty.target.shape == (3, 2, 0)
