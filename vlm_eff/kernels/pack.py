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


def pack(codes: Tensor, bits: int) -> Tensor:
    """Lay codes [..., n] uint8 side by side -> [..., ceil(n * bits / 8)] uint8; the last byte is filled up with zeros.

    The order is that of KIVI (arXiv 2402.02750, official code), whose 32-bit words read the same bytes on any
    little-endian machine. A code that is too large loses its upper bits and leaves its neighbours alone.
    """
    check_bits(bits)
    if bits == 8:
        # a slice would hold on to all that it was cut from
        return codes.clone(memory_format=torch.contiguous_format)
    room = 8 // bits
    count = codes.shape[-1]
    spare = -count % room
    cells = torch.nn.functional.pad(codes, (0, spare)).unflatten(-1, ((count + spare) // room, room))
    return ((cells & (2**bits - 1)) << _shifts(bits, codes.device)).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes [..., count] uint8 of what `pack` made [..., bytes] uint8."""
    check_bits(bits)
    if bits == 8:
        return packed[..., :count]
    cells = (packed[..., None] >> _shifts(bits, packed.device)) & (2**bits - 1)
    return cells.flatten(-2)[..., :count]


def _shifts(bits: int, device: torch.device) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=device)
