"""Keeping rows: every form moves the same bits, whatever the tensors are and however they lie in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.kit import BACKENDS, fresh, normal
from vlm_eff.core.errors import CapabilityError, InputError
from vlm_eff.kernels import why_not
from vlm_eff.kernels.compact import compact, compact_heads

LENGTH, KEPT = 61, 23
Form = Callable[[list[Tensor], Tensor], list[Tensor]]


def places(generator: torch.Generator, *lead: int, length: int = LENGTH) -> Tensor:
    """Different ascending places for every row [*lead, KEPT]."""
    return torch.rand(*lead, length, generator=generator).argsort(-1)[..., :KEPT].sort(-1).values


def layer(generator: torch.Generator, batch: int) -> list[Tensor]:
    """What follows the sequence in a decoder layer: hidden states, rotary tables, positions of three axes, a mask."""
    hidden = normal(generator, batch, LENGTH, 300)
    tables = [normal(generator, 1, LENGTH, 72, dtype=torch.float16) for _ in range(2)]
    positions = torch.randint(0, 1 << 40, (3, batch, LENGTH), generator=generator)
    mask = torch.rand(batch, LENGTH, generator=generator) > 0.5
    behind = normal(generator, LENGTH, batch, 1150).transpose(0, 1)
    return [hidden, *tables, *positions.unbind(0), mask, behind]


def heads(generator: torch.Generator, batch: int) -> list[Tensor]:
    """A cache layer: a slice of a longer one, one laid out by position, and what is known of each entry."""
    key = normal(generator, batch, 2, LENGTH + 5, 64)[:, :, :LENGTH]
    value = normal(generator, batch, LENGTH, 2, 80, dtype=torch.float16).transpose(1, 2)
    held = torch.randint(0, 99, (batch, 2, LENGTH), generator=generator, dtype=torch.int32)
    return [key, value, held, normal(generator, batch, 2, LENGTH)]


def check(form: Form, tensors: list[Tensor], index: Tensor) -> None:
    """The property: the rows named, bit for bit, in tensors of their own."""
    made = form(tensors, index)
    assert len(made) == len(tensors)
    lead = index.dim() - 1
    for got, source in zip(made, tensors, strict=True):
        wide = source.expand(*index.shape[:-1], *source.shape[lead:])
        at = index.view(*index.shape, *[1] * (source.dim() - index.dim()))
        want = wide.gather(lead, at.expand(*index.shape, *source.shape[index.dim() :]))
        assert got.dtype == want.dtype and torch.equal(got, want)
        assert got.is_contiguous() and got.untyped_storage().data_ptr() != source.untyped_storage().data_ptr()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_a_layer(backend: str, batch: int, poisoned: None) -> None:
    generator = fresh()
    check(partial(compact, backend=backend), layer(generator, batch), places(generator, batch))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_entries_of_heads(backend: str, batch: int, poisoned: None) -> None:
    generator = fresh()
    tensors, index = heads(generator, batch), places(generator, batch, 2)
    check(partial(compact, backend=backend), tensors, index)
    for got, want in zip(compact_heads(*tensors[:2], index, backend=backend), compact(tensors[:2], index), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wide_rows_and_other_lengths(backend: str, poisoned: None) -> None:
    generator = fresh()
    index = places(generator, 2)
    # columns of several programs, of which the last is not full; one tensor is longer than the other
    check(
        partial(compact, backend=backend),
        [normal(generator, 2, LENGTH, 700), normal(generator, 2, LENGTH + 9, 3, 5)],
        index.flip(1),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_nothing_there_is_nothing(backend: str) -> None:
    index = torch.zeros(2, 0, dtype=torch.long)
    assert compact([], index, backend=backend) == []
    assert [tuple(one.shape) for one in compact([torch.zeros(2, 5, 7)], index, backend=backend)] == [(2, 0, 7)]


def _late(form: Form, tensors: list[Tensor], index: Tensor) -> list[Tensor]:
    return form(tensors, (index + 1).clamp(max=LENGTH - 1))


def _shared(form: Form, tensors: list[Tensor], index: Tensor) -> list[Tensor]:
    """Every row of the batch takes what the first one keeps."""
    return form(tensors, index[:1].expand_as(index).contiguous())


def _narrow(form: Form, tensors: list[Tensor], index: Tensor) -> list[Tensor]:
    """The last columns of wide rows are left as memory was."""
    made = form(tensors, index)
    made[0][..., -1] = torch.nan
    return made


def _lent(form: Form, tensors: list[Tensor], index: Tensor) -> list[Tensor]:
    """A view in place of a copy: whoever writes to it writes to the source."""
    return [*form(tensors[:-1], index), tensors[-1][:, : index.shape[1]]]


@pytest.mark.parametrize("breaks", [_late, _shared, _narrow, _lent])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_saboteur_is_found(backend: str, breaks: Callable[..., list[Tensor]]) -> None:
    generator = fresh()
    tensors, index = layer(generator, 2), places(generator, 2)
    if breaks is _lent:
        index = torch.arange(KEPT).repeat(2, 1)
    with pytest.raises(AssertionError):
        check(partial(breaks, partial(compact, backend=backend)), tensors, index)


def test_the_kernel_is_an_operation_of_torch() -> None:
    generator = fresh()
    for tensors, index in (
        (layer(generator, 2), places(generator, 2)),
        (heads(generator, 1), places(generator, 1, 2)),
    ):
        torch.library.opcheck(
            torch.ops.vlm_eff.compact, (tensors, index), test_utils=("test_schema", "test_faketensor")
        )
    with FlopCounterMode(display=False) as counter:
        compact(tensors, index, backend="triton")
    assert counter.get_total_flops() == 0


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_compiles_whole(backend: str) -> None:
    generator = fresh()
    tensors, index = heads(generator, 2), places(generator, 2, 2)
    compiled = torch.compile(partial(compact, backend=backend), fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(tensors, index), compact(tensors, index), strict=True):
        assert torch.equal(got, want)


def test_what_does_not_fit_is_said() -> None:
    index = torch.zeros(2, 3, dtype=torch.long)
    turned = torch.zeros(2, 9, 5).transpose(1, 2)
    assert "one piece" in (why_not(compact, [torch.zeros(2, 5, 9, 2).transpose(2, 3)], index) or "")
    assert why_not(compact, [turned], index) is not None
    with pytest.raises(CapabilityError, match="complex"):
        compact([torch.zeros(2, 5, dtype=torch.complex64)], index, backend="triton")
    with pytest.raises(InputError, match="dimensions"):
        compact([turned], index[0])
    with pytest.raises(InputError, match=r"\(3, 5\)"):
        compact([torch.zeros(3, 5)], index)
    with pytest.raises(InputError, match=r"\(2,\)"):
        compact([torch.zeros(2)], index)
