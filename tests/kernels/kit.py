"""What the tests of all operations share: the forms, how far two results are apart, fresh inputs."""

from __future__ import annotations

import secrets

import torch
from torch import Tensor

BACKENDS = ("reference", "torch", "triton")
# relative error against float64, and what the logarithm of a sum of exponentials may be off
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3}
LSE_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3}


def fresh(seed: int | None = None) -> torch.Generator:
    """A generator with a new seed each time, which is printed; pass it again to repeat a failure."""
    seed = secrets.randbits(32) if seed is None else seed
    print(f"seed {seed}")  # noqa: T201 - pytest shows it where a test fails
    return torch.Generator().manual_seed(seed)


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, rounded to `dtype`."""
    return torch.randn(*shape, generator=generator).to(dtype)


def relative(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want|| in float64; a NaN anywhere is infinitely far."""
    if got.shape != want.shape:
        raise AssertionError(f"shapes {tuple(got.shape)} and {tuple(want.shape)}")
    got, want = got.double(), want.double()
    if got.isnan().any() or want.isnan().any():
        return float("inf")
    same = got == want  # infinities in the same places are no distance
    difference = (got - want).masked_fill(same, 0.0)
    length = want.masked_fill(want.isinf(), 0.0).norm().clamp(min=1e-30)
    return float(difference.norm() / length)
