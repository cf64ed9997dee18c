"""Codes of 1, 2, 4 or 8 bits side by side in bytes, little end first: value i lies at bit `bits * i` of the string."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.core.errors import ConfigError, explain

WIDTHS = (1, 2, 4, 8)


def check_bits(bits: object) -> None:
    """Raise `ConfigError` unless `bits` is a width that fills bytes without a rest."""
    if isinstance(bits, bool) or bits not in WIDTHS:
        raise ConfigError(explain(f"bits={bits!r}", ", ".join(map(str, WIDTHS)), "Choose one of these widths"))


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int, axis: int = -1) -> Tensor:
    """Lay codes [..., n] uint8 side by side -> [..., ceil(n * bits / 8)] uint8; the last byte is filled up with zeros.

    axis: along which they are laid, another than the last for codes that are turned once they are few bytes.
    The order is that of KIVI (arXiv 2402.02750, official code), whose 32-bit words read the same bytes on any
    little-endian machine. A code that is too large loses its upper bits and leaves its neighbours alone.
    """
    check_bits(bits)
    if bits == 8:
        # a slice would hold on to all that it was cut from
        return codes.clone(memory_format=torch.contiguous_format)
    room, axis = 8 // bits, axis % codes.dim()
    spare = -codes.shape[axis] % room
    if spare:
        codes = torch.nn.functional.pad(codes, (0, 0) * (codes.dim() - 1 - axis) + (0, spare))
    # planes of codes that come to lie at the same place of their byte: a sum over cells takes thrice as long
    cells = (codes & (2**bits - 1)).unflatten(axis, (codes.shape[axis] // room, room))
    made = cells.select(axis + 1, 0)
    for place in range(1, room):
        made = made | cells.select(axis + 1, place) << bits * place
    return made


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes [..., count] uint8 of what `pack` made [..., bytes] uint8."""
    check_bits(bits)
    if bits == 8:
        return packed[..., :count]
    cells = (packed[..., None] >> _shifts(bits, packed.device)) & (2**bits - 1)
    return cells.flatten(-2)[..., :count]


def _shifts(bits: int, device: torch.device) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=device)
