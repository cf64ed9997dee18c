"""Statistics of groups in the types they are stored in, rounded so that no number leaves its group's grid.

Done on the bits where a type is smaller than float32: `torch.nextafter` lacks half types on some devices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.kernels.format import Format


def statistics(
    low: Tensor, high: Tensor, format: Format, types: tuple[torch.dtype, torch.dtype]
) -> tuple[Tensor, Tensor]:
    """Step and lowest value of groups as they are stored, from their lowest and highest numbers, float32 each.

    types: of the step and of the lowest value. Groups without a member have a lowest number above the highest.
    """
    empty = low > high
    low, high = low.masked_fill(empty, 0.0), high.masked_fill(empty, 0.0)
    if format.shrink < 1:
        middle, half = (low + high) / 2, (high - low) / 2 * format.shrink
        low, high = middle - half, middle + half
    lowest = rounded(low, types[1], up=False)
    # a divisor of Python would become a product with its inverse on a GPU, which is another number
    steps = torch.full((), float(format.highest), device=low.device)
    # where all are equal a step of 0 would make NaN, which as a number of whole bits harms others
    step = (high - lowest.float()) / steps
    # and a step that is not finite makes NaN of each code of its group, 0 included
    return rounded(torch.where(step == 0, 1.0, step), types[0], up=True), lowest


def rounded(values: Tensor, dtype: torch.dtype, *, up: bool) -> Tensor:
    """Float32 numbers in a smaller type, never rounded to the wrong side."""
    made = values.to(dtype)
    if dtype == torch.float32:
        return made
    near = made.float()
    wrong = near < values if up else near > values
    # one step away from zero is one more on the bits, whatever the sign
    bits, outwards = made.view(torch.int16), made > 0 if up else made < 0
    moved = torch.where(outwards, bits + 1, bits - 1)
    # the smallest number of either sign, on whichever zero
    moved = torch.where(made == 0, 1 if up else -32767, moved)
    return torch.where(wrong, moved.to(torch.int16), bits).view(dtype)
