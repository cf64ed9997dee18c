"""Attention group by group is attention over all of them."""

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vlm_eff.kernels.format import Format
from vlm_eff.kernels.grouped_attention import Group, attend_groups, merge
from vlm_eff.kernels.quantise import quantise


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """One softmax over everything, keys repeated, heads of the bias repeated."""
    n = query.shape[1] // key.shape[1]
    logits = torch.einsum("bhqd,bhpd->bhqp", query, key.repeat_interleave(n, 1)) * scaling
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits + bias
    return logits.softmax(-1).nan_to_num(0.0) @ value.repeat_interleave(n, 1), logits.logsumexp(-1)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("biased", ["none", "shared", "key heads", "query heads", "one row"])
def test_it_equals_one_softmax(biased: str, rows: int, heads: int, softcap: float | None) -> None:
    query, key, value = (normal(2, h, p, 8, seed=s) for h, p, s in ((heads, rows, 0), (2, 13, 1), (2, 13, 2)))
    shape = {"none": (), "shared": (1, rows), "key heads": (2, rows), "query heads": (heads, rows), "one row": (1, 1)}
    bias = full = torch.zeros(2, 1, 1, 13, dtype=torch.float64)
    if biased != "none":
        bias = normal(2, *shape[biased], 13, seed=3)
        bias = bias.masked_fill(bias > 0.8, -torch.inf)
        full = bias.repeat_interleave(heads // 2, 1) if bias.shape[1] == 2 != heads else bias
    pieces = [(0, 5), (5, 5), (5, 6), (6, 13)]
    groups = [(key[:, :, a:b], value[:, :, a:b], bias[..., a:b] if biased != "none" else None) for a, b in pieces]
    made, share = attend_groups(query, groups, 0.4, softcap)
    wanted, total = whole(query, key, value, full, 0.4, softcap)
    torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(share, total, rtol=1e-12, atol=1e-12)


def test_large_logits_do_not_overflow() -> None:
    query, key, value = normal(1, 2, 2, 4, seed=0) * 1e3, normal(1, 1, 9, 4, seed=1), normal(1, 1, 9, 4, seed=2)
    made, share = attend_groups(query.float(), [(key.float(), value.float(), None)] * 2, 1.0)
    wanted, total = whole(query, key, value, torch.zeros(1), 1.0, None)
    torch.testing.assert_close(made.double(), wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(share.double(), total + torch.log(torch.tensor(2.0)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("hidden_first", [True, False])
def test_a_group_that_a_row_does_not_see_adds_nothing(hidden_first: bool) -> None:
    query, key, value = normal(2, 4, 3, 8, seed=0), normal(2, 2, 6, 8, seed=1), normal(2, 2, 6, 8, seed=2)
    bias = torch.zeros(2, 1, 3, 6, dtype=torch.float64)
    bias[0, :, 1] = -torch.inf
    seen, hidden = (key, value, None), (key + 1, value + 1, bias)
    made, share = attend_groups(query, [hidden, seen] if hidden_first else [seen, hidden], 0.4)
    alone, lone = attend_groups(query, [seen], 0.4)
    assert torch.equal(made[0, :, 1], alone[0, :, 1]) and torch.equal(share[0, :, 1], lone[0, :, 1])
    assert not torch.allclose(made[0, :, 0], alone[0, :, 0])


def test_a_row_that_sees_nothing_gets_zeros() -> None:
    query, key, value = normal(2, 4, 3, 8, seed=0), normal(2, 2, 6, 8, seed=1), normal(2, 2, 6, 8, seed=2)
    nothing = torch.full((2, 1, 1, 6), -torch.inf, dtype=torch.float64)
    empty = (key[:, :, :0], value[:, :, :0], None)
    for groups in ([], [empty], [(key, value, nothing)], [(key, value, nothing), empty, (key, value, nothing)]):
        made, share = attend_groups(query, groups, 0.4)
        assert torch.equal(made, torch.zeros_like(query))
        assert (share == -torch.inf).all()


def test_a_log_multiplicity_counts_an_entry_several_times() -> None:
    """Keys (.5, .1) twice and (1, -1); query (1, 2); values (1, 0) twice and (0, 2): (.9163, .1674) either way."""
    query = torch.tensor([[[[1.0, 2.0]]]], dtype=torch.float64)
    key, value = torch.tensor([[[[0.5, 0.1], [1, -1]]]]).double(), torch.tensor([[[[1.0, 0], [0, 2]]]]).double()
    bias = torch.tensor([2.0, 1.0]).double().log()[None, None, None]
    made, _ = attend_groups(query, [(key, value, bias)], 1.0)
    twice, _ = attend_groups(query, [(key[:, :, [0, 0, 1]], value[:, :, [0, 0, 1]], None)], 1.0)
    torch.testing.assert_close(made, twice, rtol=1e-12, atol=0)
    once, _ = attend_groups(query, [(key, value, None)], 1.0)
    assert [round(number, 4) for number in made.flatten().tolist()] == [0.9163, 0.1674]
    assert [round(number, 4) for number in once.flatten().tolist()] == [0.8455, 0.3089]


def test_groups_are_read_one_at_a_time() -> None:
    key = normal(1, 2, 64, 8, seed=1)
    stored = [quantise(key[:, :, at : at + 16], Format(4, "channel")) for at in range(0, 64, 16)]
    seen: list[weakref.ref[Tensor]] = []

    def groups() -> Iterator[Group]:
        for piece in stored:
            assert all(reference() is None for reference in seen), "an earlier group is still in memory"
            fresh = piece.read(torch.float64)
            seen.append(weakref.ref(fresh))
            yield fresh, fresh * 2, fresh[:, :1, None, :, 0] * 0
            del fresh

    query = normal(1, 4, 1, 8, seed=0)
    made, _ = attend_groups(query, groups(), 0.4)
    assert len(seen) == 4
    joint = torch.cat([piece.read(torch.float64) for piece in stored], 2)
    torch.testing.assert_close(made, attend_groups(query, [(joint, joint * 2, None)], 0.4)[0], rtol=1e-12, atol=1e-12)


def test_half_types_are_attended_in_float32() -> None:
    query, key, value = normal(1, 2, 2, 8, seed=0), normal(1, 1, 300, 8, seed=1), normal(1, 1, 300, 8, seed=2)
    query, key, value = (x.bfloat16() for x in (query, key, value))
    made, share = attend_groups(query, [(key, value, None)], 0.4)
    wanted, total = whole(query.double(), key.double(), value.double(), torch.zeros(1), 0.4, None)
    assert made.dtype == torch.bfloat16 and share.dtype == torch.float32
    assert torch.equal(made, wanted.bfloat16())
    torch.testing.assert_close(share.double(), total, rtol=1e-6, atol=1e-6)


def test_merging_is_the_same_in_any_order() -> None:
    first, second = (normal(2, 3, 5, 4, seed=0), normal(2, 3, 5, seed=1)), (normal(2, 3, 5, 4, seed=2), -torch.inf)
    nothing = (second[0] * 0, torch.full_like(first[1], -torch.inf))
    assert torch.equal(merge(*first, *nothing)[0], first[0])
    assert torch.equal(merge(*nothing, *first)[0], first[0])
    assert torch.equal(merge(*nothing, *nothing)[0], nothing[0])
