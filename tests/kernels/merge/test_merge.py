"""Sums and means by place: every form against float64, and each check against a form that is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.kit import BACKENDS, TOLERANCE, fresh, normal, relative
from vlm_eff.core.errors import InputError
from vlm_eff.kernels import why_not
from vlm_eff.kernels.merge import fast, launch, merge_tokens, op, sum_into

FAST = ("torch", "triton")


def inputs(dtype: torch.dtype, rows: int, tokens: int, width: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, places of which some lie outside, sizes of which some are 0. Nobody goes into place 1, many
    into 2, the last one into 0."""
    draw = fresh()
    x = normal(draw, rows, tokens, width, dtype=dtype)
    into = torch.randint(-1, count + 2, (rows, tokens), generator=draw)
    into = torch.where((into == 1) | (torch.rand(rows, tokens, generator=draw) < 0.3), 2, into)
    into[:, -1] = 0
    size = torch.randint(0, 5, (rows, tokens), generator=draw).float()
    size[:, -1] = 3
    return x, into, size


def by_loop(x: Tensor, into: Tensor, count: int, weight: Tensor) -> Tensor:
    made = torch.zeros(x.shape[0], count, x.shape[2], dtype=torch.promote_types(x.dtype, torch.float32))
    for row, token in torch.cartesian_prod(*map(torch.arange, into.shape)).tolist():
        place = int(into[row, token])
        if 0 <= place < count:
            made[row, place] += x[row, token].to(made.dtype) * weight[row, token].to(made.dtype)
    return made


def check_mean(backend: str, dtype: torch.dtype, rows: int, tokens: int, width: int, count: int) -> None:
    x, into, size = inputs(dtype, rows, tokens, width, count)
    made, total = merge_tokens(x, into, count, size, backend=backend)
    want = by_loop(size[:, :, None].double(), into, count, torch.ones_like(size))
    assert torch.equal(total, want[:, :, 0].float()) and made.dtype == dtype
    mean = by_loop(x.double(), into, count, size) / want.clamp(min=1)
    assert relative(made, mean) < TOLERANCE[dtype]
    assert (made[:, 1] == 0).all() and (total[:, 1] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("rows", "tokens", "width", "count"), [(2, 150, 72, 80), (1, 300, 256, 151), (3, 9, 8, 5)])
def test_means_by_size(
    backend: str, dtype: torch.dtype, rows: int, tokens: int, width: int, count: int, poisoned: None
) -> None:
    check_mean(backend, dtype, rows, tokens, width, count)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("weighted", [True, False])
def test_sums_by_weight(backend: str, dtype: torch.dtype, weighted: bool, poisoned: None) -> None:
    x, into, _ = inputs(dtype, 2, 150, 80, 61)
    weight = normal(fresh(), 2, 150) if weighted else torch.ones(2, 150)
    made = sum_into(x, into, 61, weight if weighted else None, backend=backend)
    assert made.dtype == dtype
    assert relative(made, by_loop(x.double(), into, 61, weight)) < TOLERANCE[dtype]


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_sizes_every_token_counts_once(backend: str, poisoned: None) -> None:
    x, into, _ = inputs(torch.float32, 2, 150, 16, 61)
    one, other = (merge_tokens(x, into, 61, size, backend=backend) for size in (None, torch.ones(2, 150)))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def check_alone(backend: str, dtype: torch.dtype) -> None:
    """Tokens that nothing is merged with, of any size, go where they go unchanged; all the others into place 40."""
    draw = fresh()
    x = normal(draw, 2, 60, 72, dtype=dtype)
    size = torch.randint(1, 1000, (2, 60), generator=draw) / 7
    into = torch.stack([torch.randperm(60, generator=draw) for _ in range(2)]).clamp(max=40)
    made, _ = merge_tokens(x, into, 41, size, backend=backend)
    for row in range(2):
        alone = into[row] < 40
        assert torch.equal(made[row, into[row, alone]], x[row, alone])


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_token_alone_is_unchanged(backend: str, dtype: torch.dtype) -> None:
    check_alone(backend, dtype)


def check_order(backend: str) -> None:
    """Numbers of very different size, so that another order would round otherwise."""
    x, into, _ = inputs(torch.float32, 2, 150, 20, 12)
    x = x * 10 ** (4 * normal(fresh(), 2, 150, 1))
    assert torch.equal(sum_into(x, into, 12, backend=backend), by_loop(x, into, 12, torch.ones(2, 150)))


@pytest.mark.parametrize("backend", FAST)
def test_tokens_are_added_in_their_order(backend: str) -> None:
    check_order(backend)


def test_on_a_gpu_the_order_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, into, size = inputs(torch.float32, 2, 150, 20, 12)
    want = *merge_tokens(x, into, 12, size, backend="torch"), sum_into(x, into, 12, size, backend="torch")
    monkeypatch.setattr(fast, "_add", fast.in_order)
    got = *merge_tokens(x, into, 12, size, backend="torch"), sum_into(x, into, 12, size, backend="torch")
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))


@pytest.mark.parametrize("backend", FAST)
def test_a_row_does_not_depend_on_its_neighbours(backend: str) -> None:
    x, into, size = inputs(torch.float16, 3, 50, 24, 20)
    together = merge_tokens(x, into, 20, size, backend=backend)
    for row in range(3):
        part = slice(row, row + 1)
        alone = merge_tokens(x[part], into[part], 20, size[part], backend=backend)
        assert torch.equal(alone[0][0], together[0][row]) and torch.equal(alone[1][0], together[1][row])


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_need_not_lie_side_by_side(backend: str) -> None:
    x, into, size = inputs(torch.float32, 2, 60, 40, 9)
    wide = torch.full((2, 120, 48), float("nan"))
    wide[:, 1::2, :40] = x
    strided = merge_tokens(wide[:, 1::2, :40], into, 9, size, backend=backend)
    assert torch.equal(strided[0], merge_tokens(x, into, 9, size, backend=backend)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_there(backend: str) -> None:
    x, into = torch.ones(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)
    for rows, tokens, width, count in ((0, 3, 4, 2), (2, 0, 4, 2), (2, 3, 0, 2), (2, 3, 4, 0)):
        part = x[:rows, :tokens, :width]
        made, total = merge_tokens(part, into[:rows, :tokens], count, backend=backend)
        assert made.shape == (rows, count, width) and total.shape == (rows, count)
        assert (made == 0).all() and (total == torch.tensor([tokens, 0])[:count]).all()
    made, total = merge_tokens(x, into, 2, torch.zeros(2, 3), backend=backend)
    assert (made == 0).all() and (total == 0).all()


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_float64_stays_float64(backend: str) -> None:
    x, into, size = inputs(torch.float64, 2, 41, 8, 7)
    made, total = merge_tokens(x, into, 7, size.double(), backend=backend)
    assert made.dtype == total.dtype == torch.float64
    want = by_loop(x, into, 7, size.double()) / total.clamp(min=1)[:, :, None]
    torch.testing.assert_close(made, want, atol=1e-14, rtol=0)


def test_gradients_flow() -> None:
    x, into, size = inputs(torch.float64, 2, 12, 3, 4)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: merge_tokens(x, into, 4, size.double())[0], x)


def test_torch_knows_the_kernel() -> None:
    x, into, size = inputs(torch.float32, 2, 20, 16, 7)
    for given in ((x, into, 7, size, True), (x, into, 7, None, False)):
        torch.library.opcheck(launch.launched, given, test_utils=("test_schema", "test_faketensor"))
    with FlopCounterMode(display=False) as counter:
        merge_tokens(x, into, 7, size, backend="triton")
    assert counter.get_total_flops() == 2 * 2 * 20 * 16


@pytest.mark.parametrize("backend", FAST)
def test_compiles_in_one_graph(backend: str) -> None:
    x, into, size = inputs(torch.float32, 2, 20, 16, 7)
    made = torch.compile(
        lambda x, into, size: merge_tokens(x, into, 7, size, backend=backend), fullgraph=True, backend="aot_eager"
    )
    for got, want in zip(made(x, into, size), merge_tokens(x, into, 7, size, backend=backend), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"x": torch.zeros(2, 3)}, "tokens"),
        ({"x": torch.zeros(2, 3, 4).long()}, "floating"),
        ({"into": torch.zeros(2, 4).long()}, "into"),
        ({"into": torch.zeros(2, 3)}, "an integer"),
        ({"count": -1}, "count"),
        ({"weight": torch.ones(2, 4)}, "sizes"),
        ({"weight": torch.ones(2, 3).long()}, "int64"),
    ],
)
def test_refuses(given: dict[str, Any], words: str) -> None:
    fine = {"x": torch.zeros(2, 3, 4), "into": torch.zeros(2, 3).long(), "count": 2, "weight": torch.ones(2, 3)}
    for call in (merge_tokens, sum_into):
        with pytest.raises(InputError, match=words):
            call(*(fine | given).values())


def test_says_why_the_kernel_does_not_run() -> None:
    x, into, size = inputs(torch.float32, 2, 20, 16, 7)
    assert why_not(merge_tokens, x, into, 7, size) is None
    assert "float64" in (why_not(merge_tokens, x, into, 7, size.double()) or "")
    assert "float64" in (why_not(sum_into, x.double(), into, 7, None) or "")
    assert "stride" in (why_not(sum_into, x.mT.contiguous().mT, into, 7, None) or "")


def _backwards(x: Tensor, into: Tensor, count: int, weight: Tensor | None) -> Tensor:
    return fast.sum_into(x.flip(1), into.flip(1), count, None if weight is None else weight.flip(1))


def _last_forgotten(x: Tensor, into: Tensor, count: int, size: Tensor | None) -> tuple[Tensor, Tensor]:
    return fast.merge_tokens(
        x[:, :-1], into[:, :-1].clamp(max=count - 1), count, size if size is None else size[:, :-1]
    )


def _sizes_forgotten(x: Tensor, into: Tensor, count: int, size: Tensor | None) -> tuple[Tensor, Tensor]:
    return fast.merge_tokens(x, into, count, None)[0], fast.merge_tokens(x, into, count, size)[1]


def _divided_last(x: Tensor, into: Tensor, count: int, size: Tensor | None) -> tuple[Tensor, Tensor]:
    total = fast.merge_tokens(x, into, count, size)[1]
    return (fast.sum_into(x.float(), into, count, size) / total.clamp(min=1e-9)[:, :, None]).to(x.dtype), total


def _wrapped(x: Tensor, into: Tensor, count: int, size: Tensor | None) -> tuple[Tensor, Tensor]:
    return fast.merge_tokens(x, into % count, count, size)


def _mean() -> None:
    check_mean("torch", torch.float32, 2, 150, 72, 80)


SABOTEURS: dict[str, tuple[str, Callable[..., Any], Callable[[], None]]] = {
    "the last token is forgotten": ("merge", _last_forgotten, _mean),
    "sizes are forgotten": ("merge", _sizes_forgotten, _mean),
    "places outside come back in": ("merge", _wrapped, _mean),
    "what is alone is multiplied and divided": (
        "merge",
        _divided_last,
        lambda: check_alone("torch", torch.float32),
    ),
    "from the last to the first": ("sum", _backwards, lambda: check_order("torch")),
}


@pytest.mark.parametrize("name", SABOTEURS)
def test_every_check_notices_what_is_broken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    which, broken, holds = SABOTEURS[name]
    holds()
    monkeypatch.setitem((op._MERGE if which == "merge" else op._SUM).forms, "torch", broken)
    with pytest.raises(AssertionError):
        holds()
