"""Whether what an operation returns is right: against float64, with memory it did not write made visible."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

# ||got - want|| / ||want|| against float64 on the same inputs
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
# absolute, of a natural logarithm
LSE_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-3}
_POISON = 0x7F


def relative(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want|| in float64; infinite where a shape differs or a NaN is found."""
    if got.shape != want.shape:
        return float("inf")
    got, want = got.double(), want.double()
    if got.isnan().any() or want.isnan().any():
        return float("inf")
    # infinities in the same places are no distance
    difference = (got - want).masked_fill(got == want, 0.0)
    return float(difference.norm() / want.masked_fill(want.isinf(), 0.0).norm().clamp(min=1e-30))


def farthest(got: Tensor, want: Tensor) -> float:
    """The largest absolute difference; infinite where a shape differs, a NaN is found or only one is infinite."""
    if got.shape != want.shape or got.isnan().any() or want.isnan().any():
        return float("inf")
    got, want = got.double(), want.double()
    return float((got - want).masked_fill(got == want, 0.0).abs().max()) if got.numel() else 0.0


def poison(tensor: Tensor) -> Tensor:
    """Fill a tensor in place with what nobody would compute: NaN, or the largest number of an integer type."""
    if tensor.numel():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
        elif tensor.dtype != torch.bool:
            tensor.fill_(torch.iinfo(tensor.dtype).max)
    return tensor


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, memory that torch hands out without contents is poisoned, so that a kernel that leaves a gap shows it."""

    def spoil(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: poison(make(*args, **kwargs))

    with ExitStack() as stack:
        for owner, names in ((torch, ("empty", "empty_like", "empty_strided")), (Tensor, ("new_empty",))):
            for name in names:
                stack.enter_context(mock.patch.object(owner, name, spoil(getattr(owner, name))))
        yield
