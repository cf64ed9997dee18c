"""Sparse attention in every form against float64, and what has to hold between calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.kernels.kit import BACKENDS, fresh, normal, relative
from tests.kernels.sparse_attention.cases import CASES, Case, answer, draw, faults
from vlm_eff.kernels.blocks import BlockLists, Rule
from vlm_eff.kernels.grouped_attention import merge
from vlm_eff.kernels.sparse_attention import fast, launch, sparse_attention


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("poisoned", "big_tiles")
def test_every_form_is_right(name: str) -> None:
    case = CASES[name]
    call = draw(case, fresh())
    call[3].check(case.batch, case.heads, case.queries, case.keys, values=True)
    for backend in BACKENDS:
        assert not faults(case, call, answer(case, call, backend)), backend


@pytest.mark.usefixtures("poisoned")
def test_the_tiles_of_the_table_are_right() -> None:
    for case in (Case(dtype=torch.float16, heads=1, rows=128, columns=128), Case(heads=1, queries=40, keys=80)):
        call = draw(case, fresh())
        assert not faults(case, call, answer(case, call, "triton"))


def test_float64_goes_through_the_torch_form() -> None:
    case = CASES["cross-modal, padded, behind a cache"]
    query, key, value, lists, rule = draw(case, fresh())
    call = (query.double(), key.double(), value.double(), lists, rule)
    want = sparse_attention(*call, backend="reference")
    assert relative(sparse_attention(*call), want) < 1e-14


def test_the_torch_form_does_without_the_private_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_FLASH_CPU", None)
    for name in ("cross-modal, padded, behind a cache", "seven heads a key head"):
        call = draw(CASES[name], fresh())
        assert not faults(CASES[name], call, answer(CASES[name], call, "torch"))


@pytest.mark.parametrize("return_lse", [False, True])
def test_chunks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch, return_lse: bool) -> None:
    call = draw(CASES["cross-modal, padded, behind a cache"], fresh())
    whole = sparse_attention(*call, return_lse=return_lse, backend="torch")
    monkeypatch.setattr(fast, "CHUNK", 37)
    apart = sparse_attention(*call, return_lse=return_lse, backend="torch")
    for one, other in zip(*((x if return_lse else (x,)) for x in (apart, whole)), strict=True):
        assert relative(one, other) < 1e-6


@pytest.mark.parametrize("return_lse", [False, True])
def test_on_a_processor_only_what_is_listed_is_computed(monkeypatch: pytest.MonkeyPatch, return_lse: bool) -> None:
    part = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    part[0, 0, [0, 1, 3, 4, 4], [0, 1, 1, 0, 4]] = True  # the third block of queries sees nothing at all
    case = Case(shared=True, batch=2)
    query, key, value, _, rule = draw(case, fresh())
    call = (query, key, value, BlockLists.of_masks(part & False, part, 64, 64), rule)
    name = "_attend_and_tell" if return_lse else "_attend"
    attend, lengths = getattr(fast, name), []

    def note(query: Tensor, key: Tensor, *rest: Any) -> Any:
        lengths.append(key.shape[2])
        return attend(query, key, *rest)

    monkeypatch.setattr(fast, "CHUNK", 64)
    monkeypatch.setattr(fast, name, note)
    made = sparse_attention(*call, return_lse=return_lse, backend="torch")
    want = sparse_attention(*call, return_lse=return_lse, backend="reference")
    # the first chunk has no others, the third has none to choose
    assert lengths == [64, 64, 192, 64, 108]
    for one, other in zip(*((x if return_lse else (x,)) for x in (made, want)), strict=True):
        assert relative(one, other) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("big_tiles")
def test_lists_of_everything_are_dense_attention(backend: str) -> None:
    query, key, value = (normal(fresh(), 1, 2, 192, 64) for _ in range(3))
    blocks = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    lists = BlockLists.of_masks(blocks.tril(-1), torch.eye(3, dtype=torch.bool)[None, None], 64, 64)
    want = functional.scaled_dot_product_attention(query.double(), key.double(), value.double(), is_causal=True)
    assert relative(sparse_attention(query, key, value, lists, Rule(), backend=backend), want) < 1e-6
    both = BlockLists.of_masks(blocks, ~blocks, 64, 64)
    want = functional.scaled_dot_product_attention(query.double(), key.double(), value.double())
    made = sparse_attention(query, key, value, both, Rule(causal=False), backend=backend)
    assert relative(made, want) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("big_tiles")
def test_a_batch_is_its_rows(backend: str) -> None:
    case = CASES["cross-modal, padded, behind a cache"]
    query, key, value, lists, rule = draw(case, fresh())
    whole = answer(case, (query, key, value, lists, rule), backend)
    for b in range(case.batch):
        row = slice(b, b + 1)
        alone = replace(
            lists,
            **{name: getattr(lists, name)[row] for name in ("full_count", "full_index", "part_count", "part_index")},
        )
        assert rule.first is not None and rule.text is not None
        own = replace(rule, first=rule.first[row], text=rule.text[row])
        made = answer(case, (query[row], key[row], value[row], alone, own), backend)
        assert relative(made[0], whole[0][row]) < 1e-6 and relative(made[1], whole[1][row]) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("big_tiles")
def test_the_same_call_twice_is_the_same_to_the_bit(backend: str) -> None:
    case = CASES["vertical lines"]
    call = draw(case, fresh())
    for one, other in zip(answer(case, call, backend), answer(case, call, backend), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("big_tiles")
def test_the_order_of_a_list_and_what_lies_behind_its_count_do_not_matter(backend: str) -> None:
    case = Case(heads=1, queries=150)
    call = draw(case, fresh())
    lists = call[3]
    turned = {}
    for name in ("full", "part"):
        count, index = getattr(lists, f"{name}_count"), getattr(lists, f"{name}_index")
        place = torch.arange(index.shape[-1]).expand(index.shape)
        back = (count[..., None] - 1 - place).clamp(min=0)
        turned[f"{name}_index"] = index.gather(-1, back).where(place < count[..., None], 1 << 20).int()
    made = answer(case, (*call[:3], replace(lists, **turned), call[4]), backend)
    want = answer(case, call, backend)
    assert relative(made[0], want[0]) < 1e-6 and relative(made[1], want[1]) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("big_tiles")
def test_attention_over_disjoint_lists_merges_by_its_log_sum_exp(backend: str) -> None:
    case = Case(heads=1, queries=150, first=(90,))
    call = draw(case, fresh())
    lists = call[3]
    none = torch.zeros_like(lists.full_count)
    parts = [
        answer(case, (*call[:3], replace(lists, **{name: none}), call[4]), backend)
        for name in ("full_count", "part_count")
    ]
    assert relative(merge(*parts[0], *parts[1])[0], answer(case, call, "reference")[0].double()) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("big_tiles")
def test_tensors_that_lie_otherwise_in_memory_are_read_rightly(backend: str) -> None:
    case = Case(batch=2, heads=2, queries=100, keys=130)
    query, key, value, lists, rule = draw(case, fresh())
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    # and a slice of something longer
    turned[1] = torch.cat([turned[1], turned[1]], 2)[:, :, : case.keys]
    # rows that begin at odd places
    odd = [functional.pad(x, (0, 3))[..., : case.width] for x in (query, key, value)]
    for tensors in (turned, odd):
        made = answer(case, (*tensors, lists, rule), backend)
        assert not faults(case, (query, key, value, lists, rule), made)


def forget_the_padding(arguments: list[Any]) -> None:
    arguments[9] = None


def forget_the_text(arguments: list[Any]) -> None:
    arguments[10] = None


def shift_a_count(arguments: list[Any]) -> None:
    arguments[5] = (arguments[5] - 1).clamp(min=0)


def forget_the_cache(arguments: list[Any]) -> None:
    arguments[1], arguments[2] = (x.roll(1, 2) for x in arguments[1:3])


def widen_the_window(arguments: list[Any]) -> None:
    arguments[15] += 1


def forget_the_sinks(arguments: list[Any]) -> None:
    arguments[14] = 0


def swap_the_key_heads(arguments: list[Any]) -> None:
    arguments[1] = arguments[1].flip(1)


@pytest.mark.parametrize(
    "harm",
    [
        forget_the_padding,
        forget_the_text,
        shift_a_count,
        forget_the_cache,
        widen_the_window,
        forget_the_sinks,
        swap_the_key_heads,
    ],
)
@pytest.mark.usefixtures("big_tiles")
def test_saboteur_a_broken_kernel_is_seen(monkeypatch: pytest.MonkeyPatch, harm: Callable[[list[Any]], None]) -> None:
    case = Case(
        width=16, batch=2, key_heads=2, queries=150, first=(37, 100), text=0.05, sinks=4, window=40, shared=True
    )
    query, key, value, _, rule = draw(case, fresh())
    blocks = torch.ones(1, 1, 3, 5, dtype=torch.bool)
    call = (query, key, value, BlockLists.of_masks(~blocks, blocks, 64, 64), rule)
    assert not faults(case, call, answer(case, call, "triton"))
    launched = launch.launched

    def harmed(*arguments: Any) -> tuple[Tensor, Tensor]:
        changed = list(arguments)
        harm(changed)
        return launched(*changed)

    monkeypatch.setattr(launch, "launched", harmed)
    assert faults(case, call, answer(case, call, "triton"))


def test_saboteur_columns_that_are_forgotten_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["vertical lines"]
    call = draw(case, fresh())
    fewer = replace(call[3], column_count=(call[3].column_count - 1).clamp(min=0))
    assert faults(case, call, answer(case, (*call[:3], fewer, call[4]), "torch"))
