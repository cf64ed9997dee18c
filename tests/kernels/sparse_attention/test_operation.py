"""Sparse attention as an operation: what it refuses, what torch knows of it, what it counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.kit import fresh, normal
from tests.kernels.sparse_attention.cases import CASES, Case, draw
from vlm_eff.core.errors import CapabilityError, ConfigError, InputError
from vlm_eff.kernels import why_not
from vlm_eff.kernels.blocks import BlockLists, Rule
from vlm_eff.kernels.sparse_attention import launch, sparse_attention
from vlm_eff.kernels.sparse_attention.launch import launched

SMALL = Case(queries=100, keys=130)


def arguments(case: Case = SMALL) -> tuple[Any, ...]:
    """What the registered operation takes."""
    query, key, value, lists, rule = draw(case, fresh())
    text = None if rule.text is None else rule.text.view(torch.uint8)
    window = launch.NO_WINDOW if rule.window is None else rule.window
    tensors = (lists.full_count, lists.full_index, lists.part_count, lists.part_index)
    return (
        *(query, key, value, *tensors, lists.column_count, lists.column_index, rule.first, text),
        *(lists.rows, lists.columns, rule.causal, rule.sinks, window, 0.125, 0.0),
    )


@pytest.mark.parametrize("name", ["float16", "cross-modal, padded, behind a cache", "vertical lines"])
@pytest.mark.usefixtures("big_tiles")
def test_torch_knows_the_operation(name: str) -> None:
    torch.library.opcheck(launched, arguments(CASES[name]), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
@pytest.mark.usefixtures("big_tiles")
def test_a_compiled_model_is_not_broken_by_it(backend: str) -> None:
    query, key, value, lists, rule = draw(CASES["cross-modal, padded, behind a cache"], fresh())

    def call(query: Tensor, key: Tensor, value: Tensor) -> Any:
        return sparse_attention(query * 2, key, value, lists, rule, return_lse=True, backend=backend)

    made = torch.compile(call, fullgraph=True, backend="aot_eager")(query, key, value)
    for one, other in zip(made, call(query, key, value), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("big_tiles")
def test_what_is_counted_is_what_is_listed() -> None:
    width, blocks = 32, torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    full, part = blocks.clone(), blocks.clone()
    full[0, 0, 2, 0], part[0, 0, 0, 0], part[0, 0, 2, 2] = True, True, True
    lists = BlockLists.of_masks(full, part, 64, 64)
    line = torch.tensor([0, 5, 0], dtype=torch.int32)[None, None]
    lines = replace(lists, column_count=line, column_index=torch.arange(5).int().expand(1, 1, 3, 5).contiguous())
    query = normal(fresh(), 2, 4, 192, width)
    key = normal(fresh(), 2, 2, 192, width)
    for given, keys in ((lists, 3 * 64), (lines, 3 * 64 + 5)):
        with FlopCounterMode(display=False) as counter:
            sparse_attention(query, key, key, given, Rule(), backend="triton")
        assert counter.get_total_flops() == 4 * width * 64 * keys * 2 * 4
    # a traced graph has no contents: all keys for all rows
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        made = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in arguments()]
        with FlopCounterMode(display=False) as counter:
            launched(*made)
    assert counter.get_total_flops() == 4 * 64 * 64 * 2 * 130 * 2


def test_gradients_are_refused() -> None:
    query, key, value, lists, rule = draw(SMALL, fresh())
    for backend in ("auto", "reference", "torch", "triton"):
        with pytest.raises(CapabilityError, match="no_grad"):
            sparse_attention(query.requires_grad_(), key, value, lists, rule, backend=backend)
    with torch.no_grad():
        sparse_attention(query, key, value, lists, rule)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    query, key, value, lists, rule = draw(SMALL, fresh())
    wrong = [
        (query[0], key, value),
        (query, key, value[:, :, 1:]),
        (query, key[..., :32], value[..., :32]),
        (query[:, :1].expand(-1, 3, -1, -1), key.expand(-1, 2, -1, -1), value.expand(-1, 2, -1, -1)),
        (query.repeat(1, 1, 2, 1), key, value),
        (query[:, :, :0], key, value),
    ]
    for tensors in wrong:
        with pytest.raises(InputError, match="query, key and value of shapes"):
            sparse_attention(*tensors, lists, rule)
    with pytest.raises(InputError, match="Build the lists for this call"):
        sparse_attention(query[:, :, :30], key, value, lists, rule)
    with pytest.raises(InputError, match="first of shape"):
        sparse_attention(query, key, value, lists, Rule(first=torch.zeros(3, dtype=torch.int32)))
    for options in ({"scaling": 0.0}, {"softcap": -1.0}):
        with pytest.raises(InputError, match="numbers above 0"):
            sparse_attention(query, key, value, lists, rule, **options)
    with pytest.raises(ConfigError, match="flash4"):
        sparse_attention(query, key, value, lists, rule, backend="cuda")


def test_what_the_kernel_cannot_do_is_said() -> None:
    query, key, value, lists, rule = draw(SMALL, fresh())
    assert why_not(sparse_attention, query, key, value, lists, rule) is None
    narrow = [x[..., :20] for x in (query, key, value)]
    assert "20 wide" in (why_not(sparse_attention, *narrow, lists, rule) or "")
    doubles = [x.double() for x in (query, key, value)]
    assert "float64" in (why_not(sparse_attention, *doubles, lists, rule) or "")
    odd = draw(replace(SMALL, rows=49, columns=49), fresh())
    assert "49 x 49" in (why_not(sparse_attention, *odd) or "")
    turned = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (query, key, value)]
    assert "stride" in (why_not(sparse_attention, *turned, lists, rule) or "")
    half = [x.bfloat16() for x in (query, key, value)]
    assert "bfloat16" in (why_not(sparse_attention, *half, lists, rule) or "")
    # and the answer is there all the same
    assert sparse_attention(*odd).isfinite().all() and sparse_attention(*turned, lists, rule).isfinite().all()


def test_what_other_forms_cannot_do_is_said() -> None:
    call = draw(SMALL, fresh())
    assert why_not(sparse_attention, *call, backend="flex") is None
    assert "log-sum-exp" in (why_not(sparse_attention, *call, backend="flex", return_lse=True) or "")
    lines = draw(CASES["vertical lines"], fresh())
    assert "single keys" in (why_not(sparse_attention, *lines, backend="flex") or "")
    reason = why_not(sparse_attention, *call, backend="flash4")
    assert reason is not None and ("flash_attn.cute" in reason or "NVIDIA" in reason)
    with pytest.raises(CapabilityError, match="flash4"):
        sparse_attention(*call, backend="flash4")
