"""Launches the kernel that copies rows, as an operation of torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlm_eff.kernels.compact.tiles import ROWS
from vlm_eff.kernels.register import register

# contents are only moved: a type of the same size stands for each
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def limits(tensors: list[Tensor], index: Tensor) -> str | None:
    """Why the kernel cannot run on these arguments; None when it can."""
    for tensor in tensors:
        if tensor.is_complex() or tensor.element_size() not in WORDS:
            return f"a tensor is {tensor.dtype}, and the kernel moves numbers of {', '.join(map(str, WORDS))} bytes"
        if not _dense(tensor, index.dim()):
            return f"rows of a tensor with strides {tensor.stride()} do not lie in one piece"
    return None


def _dense(tensor: Tensor, behind: int) -> bool:
    """True when a row, all axes from `behind` on, lies in one piece."""
    expected = 1
    for size, stride in zip(reversed(tensor.shape[behind:]), reversed(tensor.stride()[behind:]), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def compact(tensors: list[Tensor], index: Tensor) -> list[Tensor]:
    """The form `triton`, see `op.compact`."""
    return list(launched(tensors, index)) if tensors else []


def _outputs(tensors: list[Tensor], index: Tensor) -> list[Tensor]:
    return [tensor.new_empty(*index.shape, *tensor.shape[index.dim() :]) for tensor in tensors]


def _launch(tensors: list[Tensor], index: Tensor) -> list[Tensor]:
    from vlm_eff.kernels.compact.kernel import copy_rows

    made = _outputs(tensors, index)
    lead, kept = index.dim() - 1, index.shape[-1]
    moved = [
        (tensor.expand(*index.shape[:-1], *tensor.shape[lead:]), target)
        for tensor, target in zip(tensors, made, strict=True)
        if target.numel()
    ]
    if not moved:
        return made
    words = [WORDS[tensor.element_size()] for tensor, _ in moved]
    widths = tuple(math.prod(tensor.shape[lead + 1 :]) for tensor, _ in moved)
    columns = tuple(_columns(width, word.itemsize) for width, word in zip(widths, words, strict=True))
    blocks = max(-(-width // block) for width, block in zip(widths, columns, strict=True))
    heads = 1 if lead == 1 else index.shape[1]
    grid = (-(-kept // ROWS.m), index.numel() // kept, blocks)
    copy_rows[grid](
        tuple(tensor.view(word) for (tensor, _), word in zip(moved, words, strict=True)),
        tuple(target.view(word) for (_, target), word in zip(moved, words, strict=True)),
        tuple(tensor.stride(0) for tensor, _ in moved),
        tuple(tensor.stride(1) if lead == 2 else 0 for tensor, _ in moved),
        tuple(tensor.stride(lead) for tensor, _ in moved),
        widths, index.contiguous(), heads, kept,
        ROWS=ROWS.m, COLUMNS=columns,
        num_warps=ROWS.warps, num_stages=ROWS.stages, enable_fp_fusion=True,
    )  # fmt: skip
    return made


def _columns(width: int, size: int) -> int:
    """Numbers of a row that a program moves, a power of two."""
    return min(1 << (width - 1).bit_length(), ROWS.n // size)


def _fake(tensors: list[Tensor], index: Tensor) -> list[Tensor]:
    return _outputs(tensors, index)


def _flops(tensors: object, index: object, out_shape: object = None) -> int:
    """Moves numbers and computes nothing."""
    return 0


launched = register("compact", _launch, fake=_fake, flops=_flops)
