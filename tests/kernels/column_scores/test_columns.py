"""Column sums of attention over all rows: against float64, against a gradient, and what must hold of any sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kernels.kit import BACKENDS, TOLERANCE, fresh, normal, relative
from tests.kernels.window_scores.problems import exact, heads, large_tiles, sight
from vlm_eff.core.errors import InputError
from vlm_eff.kernels.column_scores import column_scores, launch
from vlm_eff.kernels.window_scores import Sight, visible_rows, window_lse, window_scores
from vlm_eff.kernels.window_scores.launch import Problem

__all__ = ["large_tiles"]

HALF, FULL = torch.float16, torch.float32
SHAPES = [(FULL, 64, 1), (HALF, 72, 2), (FULL, 80, 1), (HALF, 128, 7)]


def check_columns(backend: str, *states: Any, **arguments: Any) -> None:
    arguments = {"scaling": states[0].shape[3] ** -0.5} | arguments
    got = column_scores(*states, **arguments, backend=backend)
    want = exact(column_scores, *states, **arguments)
    assert relative(got, want) < TOLERANCE[states[0].dtype]
    assert torch.equal(got == 0, want == 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "width", "group"), SHAPES, ids=str)
def test_sums_of_all_widths(poisoned: None, backend: str, dtype: torch.dtype, width: int, group: int) -> None:
    query, key = heads(fresh(), width, group, 150, 150, dtype=dtype)
    check_columns(backend, query, key, first=torch.tensor([0, 37]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["last rows", "columns", "sliding", "tower", "mask"])
def test_sums_of_what_may_be_seen(poisoned: None, backend: str, name: str) -> None:
    generator = fresh()
    # an odd number of keys in front of an odd number of rows
    query, key = heads(generator, 32, 1, 171, 300, batch=1)
    arguments = sight(name, generator, query, key)
    weight = torch.randint(0, 3, (1, 171), generator=generator).float()
    check_columns(backend, query, key, **arguments, weight=weight, normalise="visible")
    if name == "last rows":
        check_columns(backend, query, key, grouped=False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [True, False])
def test_sums_are_a_gradient(poisoned: None, backend: str, causal: bool) -> None:
    """Attention's own backward knows them: d sum(output[..., 0]) / d value[..., 0], without any matrix here."""
    query, key = heads(fresh(), 64, 2, 200, 200, shared=2, batch=1)
    value = normal(fresh(), 1, 2, 200, 64).requires_grad_()
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=True)
    (gradient,) = torch.autograd.grad(out[..., 0].sum(), value)
    got = column_scores(query, key, scaling=0.125, causal=causal, backend=backend)
    assert relative(got, gradient[..., 0]) < 2e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_that_rows_pay_arrives(poisoned: None, backend: str) -> None:
    query, key = heads(fresh(), 64, 2, 300, 300, dtype=HALF)
    got = column_scores(query, key, scaling=0.125, first=torch.tensor([0, 100]), backend=backend)
    assert (got >= 0).all() and (got[1, 0, :100] == 0).all()
    # every row once for each head; rows of padding see nothing
    assert got.sum((1, 2)).sub(torch.tensor([600.0, 400.0])).abs().max() < 1e-6 * 600


@pytest.mark.parametrize("backend", BACKENDS)
def test_order_tells_as_much_as_columns(poisoned: None, backend: str) -> None:
    query, key = heads(fresh(), 64, 2, 150, 300, batch=1)
    want = column_scores(query, key, scaling=0.125, backend=backend)
    column = torch.arange(150, 300)[None]
    assert relative(column_scores(query, key, scaling=0.125, column=column, backend=backend), want) < 1e-6
    assert relative(window_scores(query, key, scaling=0.125, backend=backend), want) < 1e-6
    # probes: any rows, in any order
    chosen = torch.randperm(150)[:40]
    lse = window_lse(query, key, scaling=0.125, backend=backend)
    arguments: dict[str, Any] = {"column": column[:, chosen], "lse": lse[:, :, chosen]}
    probes = column_scores(query[:, :, chosen], key, scaling=0.125, **arguments, backend=backend)
    weight = torch.zeros(1, 150).index_fill(1, chosen, 1.0)
    assert relative(column_scores(query, key, scaling=0.125, weight=weight, backend=backend), probes) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_even_attention_is_even_per_visible_row(poisoned: None, backend: str) -> None:
    """Equal logits: key j gets 1 / (i + 1) of each row i from j on; without padding the harmonic numbers."""
    query, key = torch.zeros(2, 4, 150, 32), torch.zeros(2, 2, 150, 32)
    first = torch.tensor([0, 30])
    got = column_scores(query, key, scaling=1.0, first=first, normalise="visible", backend=backend)
    for row, begin in enumerate(first.tolist()):
        harmonic = (1 / torch.arange(1, 151 - begin, dtype=torch.float64)).flip(0).cumsum(0).flip(0)
        mean = harmonic / torch.arange(150 - begin, 0, -1)
        assert relative(got[row, 1, begin:], mean) < 1e-6
        assert (got[row, :, :begin] == 0).all()


def test_equal_inputs_give_equal_bits(poisoned: None) -> None:
    query, key = heads(fresh(), 64, 1, 300, 300, batch=1)
    made = [column_scores(query, key, scaling=0.125, backend="triton") for _ in range(2)]
    assert torch.equal(*made)


def test_masks_of_heads_are_counted_for_each() -> None:
    generator = fresh()
    query, key = heads(generator, 32, 2, 30, 50, shared=2)
    looks = torch.rand(2, 4, 30, 50, generator=generator) < 0.5
    arguments: dict[str, Any] = {"scaling": 0.2, "looks": looks, "causal": False}
    sums = column_scores(query, key, **arguments, grouped=False)
    count = looks.sum(2).float()
    assert torch.equal(visible_rows(Sight(30, 50, False, None, None, looks), None, 2, query.device), count)
    each = column_scores(query, key, **arguments, grouped=False, normalise="visible")
    torch.testing.assert_close(each, sums / count)
    both = column_scores(query, key, **arguments, normalise="visible")
    torch.testing.assert_close(both, sums.unflatten(1, (2, 2)).sum(2) / count.unflatten(1, (2, 2)).sum(2))


def test_torch_knows_the_kernel() -> None:
    query, key = heads(fresh(), 32, 2, 40, 40, batch=1)
    sample = (query, key, None, None, None, None, None, 0.1, 0.0, True, True)
    torch.library.opcheck(launch.COLUMNS, sample, test_utils=("test_schema", "test_faketensor"))
    for backend in ("torch", "triton"):
        compiled = torch.compile(
            lambda query, key, backend=backend: column_scores(query, key, scaling=0.1, backend=backend),
            fullgraph=True,
            backend="aot_eager",
        )
        torch.testing.assert_close(compiled(query, key), column_scores(query, key, scaling=0.1))
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        column_scores(query, key, scaling=0.1, backend="triton")
    assert counter.get_total_flops() == 2 * 2 * 2 * 40 * 40 * 32


def test_an_unknown_share_is_refused() -> None:
    query, key = heads(fresh(), 32, 1, 4, 40)
    with pytest.raises(InputError, match="normalise='length'"):
        column_scores(query, key, scaling=0.1, normalise="length")  # type: ignore[arg-type]


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_shifted_diagonal_is_noticed(poisoned: None, monkeypatch: pytest.MonkeyPatch, shift: int) -> None:
    query, key = heads(fresh(), 32, 1, 150, 160, batch=1)
    check_columns("triton", query, key)
    sizes = Problem.sizes
    monkeypatch.setattr(Problem, "sizes", lambda self: (*sizes(self)[:4], sizes(self)[4] + shift))
    with pytest.raises(AssertionError):
        check_columns("triton", query, key)
