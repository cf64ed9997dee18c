"""What keys get from a window of rows: all forms against the definition in float64, and what must hold of any."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.kit import BACKENDS, LSE_TOLERANCE, TOLERANCE, fresh, relative
from tests.kernels.window_scores.problems import SIGHTS, exact, heads, large_tiles, sight
from vlm_eff.kernels.window_scores import launch, window_lse, window_scores

__all__ = ["large_tiles"]

HALF, FULL = torch.float16, torch.float32
SHAPES = [(HALF, 64, 7), (FULL, 72, 1), (HALF, 80, 2), (FULL, 128, 2), (HALF, 96, 1), (HALF, 256, 1), (FULL, 16, 3)]


def check_scores(backend: str, query: Tensor, key: Tensor, **arguments: Any) -> None:
    scaling = query.shape[3] ** -0.5
    got = window_scores(query, key, scaling=scaling, **arguments, backend=backend)
    want = exact(window_scores, query, key, scaling=scaling, **arguments)
    assert relative(got, want) < TOLERANCE[query.dtype]
    # not near nothing, but nothing
    assert torch.equal(got == 0, want == 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "width", "group"), SHAPES, ids=str)
def test_scores_of_all_widths(poisoned: None, backend: str, dtype: torch.dtype, width: int, group: int) -> None:
    generator = fresh()
    query, key = heads(generator, width, group, dtype=dtype)
    check_scores(backend, query, key, **sight("left padding", generator, query, key))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SIGHTS)
def test_scores_of_what_may_be_seen(poisoned: None, backend: str, name: str) -> None:
    generator = fresh()
    query, key = heads(generator, 32, 2)
    check_scores(backend, query, key, **sight(name, generator, query, key))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["last rows", "mask of heads"])
def test_scores_of_each_head(poisoned: None, backend: str, name: str) -> None:
    generator = fresh()
    query, key = heads(generator, 32, 2, shared=2, batch=1)
    check_scores(backend, query, key, **sight(name, generator, query, key), grouped=False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["columns", "mask"])
def test_logarithms_of_rows(poisoned: None, backend: str, name: str) -> None:
    generator = fresh()
    for dtype, width, group in ((HALF, 64, 7), (FULL, 80, 2)):
        query, key = heads(generator, width, group, dtype=dtype)
        arguments = sight(name, generator, query, key)
        got = window_lse(query, key, scaling=0.1, **arguments, backend=backend)
        want = exact(window_lse, query, key, scaling=0.1, **arguments)
        empty = want == -torch.inf
        assert empty.any() and torch.equal(got == -torch.inf, empty)
        assert float((got.double() - want)[~empty].abs().max()) < LSE_TOLERANCE[dtype]


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_rows_count_by_their_weight(poisoned: None, backend: str, reduce: str) -> None:
    generator = fresh()
    query, key = heads(generator, 64, 2, keys=150)
    weight = torch.randint(0, 4, query.shape[::2], generator=generator).float()
    weight[:, 3] = 0
    # what does not count may be no number
    query[:, :, 3] = torch.nan
    column = torch.randint(0, 150, query.shape[::2], generator=generator)
    column[:, 7] = -1
    query[:, :, 7] = torch.nan
    clean = query.nan_to_num(1.0)
    for counts in ({"column": column, "weight": weight}, {"weight": weight.masked_fill(column < 0, 0.0)}):
        want = exact(window_scores, clean, key, scaling=0.1, reduce=reduce, **counts)
        got = window_scores(query, key, scaling=0.1, reduce=reduce, **counts, backend=backend)
        assert relative(got, want) < TOLERANCE[FULL]


@pytest.mark.parametrize("backend", BACKENDS)
def test_soft_caps(poisoned: None, backend: str) -> None:
    generator = fresh()
    # on both sides of where the kernel's tanh changes its formula; logits of 50 carry an error of 4e-6
    for scale in (0.02, 0.2, 3.0):
        query, key = heads(generator, 64, 2, keys=150)
        arguments: dict[str, Any] = {"scaling": scale, "softcap": 20.0}
        want = exact(window_scores, query, key, **arguments)
        assert relative(window_scores(query, key, **arguments, backend=backend), want) < 3e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 33])
def test_sums_are_what_the_rows_pay(poisoned: None, backend: str, rows: int) -> None:
    query, key = heads(fresh(), 64, 7, rows=rows, keys=150, dtype=HALF)
    got = window_scores(query, key, scaling=0.125, first=torch.tensor([0, 37]), backend=backend)
    assert (got >= 0).all()
    assert (got[1, :, :37] == 0).all()
    assert got.sum(2).sub(7 * rows).abs().max() < 1e-6 * 7 * rows * 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_heads_are_independent(poisoned: None, backend: str) -> None:
    query, key = heads(fresh(), 32, 2, shared=3, keys=150)
    order = torch.tensor([2, 0, 1])
    mixed = query.unflatten(1, (3, 2))[:, order].flatten(1, 2)
    want = window_scores(query, key, scaling=0.2, backend=backend)
    assert relative(window_scores(mixed, key[:, order], scaling=0.2, backend=backend), want[:, order]) < 1e-6
    # and of a group it does not matter which head is which
    turned = query.unflatten(1, (3, 2)).flip(2).flatten(1, 2)
    assert relative(window_scores(turned, key, scaling=0.2, backend=backend), want) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_its_rows(poisoned: None, backend: str) -> None:
    query, key = heads(fresh(), 64, 2, batch=3)
    pads = [0, 100, 230]
    got = window_scores(query, key, scaling=0.125, first=torch.tensor(pads), backend=backend)
    for row, pad in enumerate(pads):
        alone = window_scores(query[row : row + 1], key[row : row + 1, :, pad:], scaling=0.125, backend=backend)
        assert relative(got[row : row + 1, :, pad:], alone) < 1e-6
        assert (got[row, :, :pad] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_known_logarithms_save_a_pass(poisoned: None, backend: str) -> None:
    generator = fresh()
    query, key = heads(generator, 64, 2)
    arguments = sight("columns", generator, query, key) | {"scaling": 0.125}
    lse = window_lse(query, key, **arguments, backend=backend)
    want = window_scores(query, key, **arguments, backend=backend)
    assert relative(window_scores(query, key, **arguments, lse=lse, backend=backend), want) < 1e-6
    # what was given is what is used
    more = window_scores(query, key, **arguments, lse=lse + 1, backend=backend)
    assert relative(more * torch.e, want) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_as_models_lay_them_out(poisoned: None, backend: str) -> None:
    query, key = heads(fresh(), 64, 2, shared=2, keys=150, dtype=HALF)
    turned = [states.transpose(1, 2).contiguous().transpose(1, 2) for states in (query, key)]
    assert not turned[0].is_contiguous()
    want = window_scores(query, key, scaling=0.125, backend=backend)
    assert torch.equal(window_scores(*turned, scaling=0.125, backend=backend), want)


def test_parts_of_the_keys_make_no_difference(poisoned: None) -> None:
    generator = fresh()
    query, key = heads(generator, 64, 1, keys=1100)
    column = torch.randint(0, 1100, query.shape[::2], generator=generator)

    def run(splits: int) -> Tensor:
        got: Tensor = launch.SCORES(
            query, key, column, None, None, None, None, 0.125, 0.0, True, "sum", True, splits=splits
        )
        return got

    one = run(1)
    eight = run(8)
    assert relative(eight, one) < 1e-6
    assert torch.equal(run(8), eight)


def test_the_table_for_a_gpu_in_float32(poisoned: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    query, key = heads(fresh(), 128, 2, rows=9, keys=150, batch=1)
    check_scores("triton", query, key)
