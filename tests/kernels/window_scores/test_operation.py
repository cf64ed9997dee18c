"""The operation around the numbers: what torch knows of it, what it refuses, and that its tests can fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.kit import fresh
from tests.kernels.window_scores import test_scores as properties
from tests.kernels.window_scores.problems import heads, large_tiles, sight
from tests.kernels.window_scores.test_scores import check_scores
from vlm_eff.core.errors import CapabilityError, InputError
from vlm_eff.kernels import why_not
from vlm_eff.kernels.window_scores import Sight, fast, launch, visible_keys, visible_rows, window_lse, window_scores

__all__ = ["large_tiles"]


def test_torch_knows_both_kernels() -> None:
    generator = fresh()
    query, key = heads(generator, 32, 2, rows=4, keys=40, batch=1)
    mask = torch.rand(1, 1, 4, 40, generator=generator) < 0.5
    weight, first = torch.ones(1, 4), torch.tensor([3])
    lse = window_lse(query, key, scaling=0.1, backend="triton")
    for arguments in ((None, first, None, weight, None), (torch.full((1, 4), 30), None, mask, None, lse)):
        sample = (query, key, *arguments, 0.1, 0.0, True, "sum", True)
        torch.library.opcheck(launch.SCORES, sample, test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(launch.LSE, (query, key, None, first, None, 0.1, 5.0, True))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_compiled_models_pass_it_by(backend: str) -> None:
    query, key = heads(fresh(), 32, 2, rows=4, keys=40, batch=1)

    def scores(query: Tensor, key: Tensor) -> Tensor:
        return window_scores(query, key, scaling=0.1, first=torch.tensor([3]), backend=backend) * 2

    compiled = torch.compile(scores, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, key), scores(query, key))


def test_products_are_counted() -> None:
    query, key = heads(fresh(), 32, 2, rows=4, keys=40, batch=1)
    once = 2 * 2 * 4 * 40 * 32
    lse = window_lse(query, key, scaling=0.1, backend="triton")
    for known, times in ((None, 2), (lse, 1)):
        with FlopCounterMode(display=False) as counter:
            window_scores(query, key, scaling=0.1, lse=known, backend="triton")
        assert counter.get_total_flops() == times * once
    with FlopCounterMode(display=False) as counter:
        window_lse(query, key, scaling=0.1, backend="triton")
    assert counter.get_total_flops() == once


def test_gradients_pass_through_torch() -> None:
    query, key = heads(fresh(), 32, 2, rows=4, keys=40, batch=1)
    query.requires_grad_()
    with pytest.raises(CapabilityError, match="no backward"):
        window_scores(query, key, scaling=0.1, backend="triton")
    found = []
    for backend in ("reference", "torch"):
        got = window_scores(query, key, scaling=0.1, backend=backend)
        found.append(torch.autograd.grad(got.square().sum(), query)[0])
    torch.testing.assert_close(found[1], found[0])


class Largest(TorchDispatchMode):
    """Notes the most numbers that a new tensor holds."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(one, Tensor) and one.dtype.is_floating_point:
                self.numbers = max(self.numbers, one.numel())
        return made


def test_rows_are_taken_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = fresh()
    query, key = heads(generator, 32, 2, rows=90, keys=100)
    arguments = sight("columns", generator, query, key) | {"scaling": 0.2}
    want = window_scores(query, key, **arguments, backend="torch")
    many = window_lse(query, key, **arguments, backend="torch")
    monkeypatch.setattr(fast, "CHUNK", 7 * 2 * 2 * 100)
    with Largest() as seen:
        got = window_scores(query, key, **arguments, backend="torch")
        few = window_lse(query, key, **arguments, backend="torch")
    # nothing larger than what comes in
    assert seen.numbers <= query.numel()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(few, many)


def test_rows_that_may_look_are_counted_without_pairs() -> None:
    generator = fresh()
    query, key = heads(generator, rows=30, keys=50)
    weight = torch.randint(0, 4, (2, 30), generator=generator).float()
    for name in ("last rows", "columns", "left padding", "sliding", "tower", "mask", "mask of keys"):
        rule = {"causal": True, "column": None, "first": None, "looks": None}
        rule |= sight(name, generator, query, key)
        seen = Sight(30, 50, **rule)
        pairs = seen.pairs(2, query.device)
        all_pairs = torch.ones(2, 1, 30, 50, dtype=torch.bool) if pairs is None else pairs.expand(2, -1, 30, -1)
        assert torch.equal(visible_keys(seen, 2, query.device), all_pairs[:, 0].sum(2)), name
        for counts in (None, weight):
            want = all_pairs[:, :1].float() * (1 if counts is None else counts[:, None, :, None])
            assert torch.equal(visible_rows(seen, counts, 2, query.device), want.sum(2)), name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"column": torch.zeros(2, 3)}, "column of shape"),
        ({"first": torch.zeros(3)}, "first of shape"),
        ({"weight": torch.zeros(4)}, "weight of shape"),
        ({"lse": torch.zeros(2, 1, 4)}, "lse of shape"),
        ({"looks": torch.ones(2, 3, 4, 40, dtype=torch.bool)}, "looks of shape"),
        ({"looks": torch.ones(2, 1, 4, 40)}, "torch.bool"),
        ({"column": torch.zeros(2, 4), "causal": False}, "causal=False with columns"),
        ({"reduce": "mean"}, "reduce='mean'"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], said: str) -> None:
    query, key = heads(fresh(), 32, 2, rows=4, keys=40)
    with pytest.raises(InputError, match=said):
        window_scores(query, key, scaling=1.0, **arguments)


def test_shapes_that_are_no_attention_are_refused() -> None:
    query, key = heads(fresh(), 32, 3, rows=4, keys=40)
    for wrong in ((query[0], key), (query, key[:1]), (query, key[..., :16]), (query, key.expand(-1, 2, -1, -1))):
        with pytest.raises(InputError, match="query and key of shape"):
            window_scores(*wrong, scaling=1.0)
    with pytest.raises(InputError, match="4 rows over 3 keys"):
        window_lse(query, key[:, :, :3], scaling=1.0)


def test_what_kernels_do_not_take_is_said() -> None:
    query, key = heads(fresh(), 48, 1, rows=4, keys=40)
    assert "48 wide" in (why_not(window_scores, query, key, scaling=1.0) or "")
    query, key = heads(fresh(), 64, 1, rows=4, keys=40)
    assert why_not(window_scores, query, key, scaling=1.0) is None
    assert "float64" in (why_not(window_scores, query.double(), key.double(), scaling=1.0) or "")
    apart = key.transpose(2, 3).contiguous().transpose(2, 3)
    assert "stride" in (why_not(window_lse, query, apart, scaling=1.0) or "")


def _forget_padding(patch: pytest.MonkeyPatch) -> None:
    flags = launch.Problem.flags
    patch.setattr(launch.Problem, "flags", lambda self: flags(self) | {"FIRST": False})


def _shift_columns(patch: pytest.MonkeyPatch) -> None:
    sizes = launch.Problem.sizes
    patch.setattr(launch.Problem, "sizes", lambda self: (*sizes(self)[:4], sizes(self)[4] - 1))


def _lose_a_head(patch: pytest.MonkeyPatch) -> None:
    sizes = launch.Problem.sizes
    patch.setattr(launch.Problem, "sizes", lambda self: (sizes(self)[0], 1, *sizes(self)[2:]))


def _lose_a_part(patch: pytest.MonkeyPatch) -> None:
    find = launch.find_lse

    def broken(problem: launch.Problem, table: Any, splits: int = 0) -> Tensor:
        if splits > 1:
            half = Sight(problem.sight.rows, 512, False, None, None, None)
            problem = launch.Problem(problem.query, problem.key, half, problem.scaling, problem.softcap)
        return find(problem, table, splits)

    patch.setattr(launch, "find_lse", broken)


def _base_two(patch: pytest.MonkeyPatch) -> None:
    scores = launch.find_scores
    patch.setattr(launch, "find_scores", lambda problem, lse, *rest: scores(problem, lse * 1.4427, *rest))


@pytest.mark.parametrize(
    ("sabotage", "check"),
    [
        (_forget_padding, lambda: properties.test_a_batch_is_its_rows(None, "triton")),
        (_shift_columns, lambda: check_scores("triton", *heads(fresh(), 32, 1, keys=150, batch=1))),
        (_lose_a_head, lambda: check_scores("triton", *heads(fresh(), 32, 2, keys=150, batch=1))),
        (_lose_a_part, lambda: properties.test_parts_of_the_keys_make_no_difference(None)),
        (_base_two, lambda: check_scores("triton", *heads(fresh(), 32, 1, keys=150, batch=1))),
    ],
)
def test_a_broken_kernel_is_noticed(
    poisoned: None,
    monkeypatch: pytest.MonkeyPatch,
    sabotage: Callable[[pytest.MonkeyPatch], None],
    check: Callable[[], None],
) -> None:
    check()
    sabotage(monkeypatch)
    with pytest.raises(AssertionError):
        check()
