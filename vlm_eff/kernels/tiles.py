"""Tile sizes of kernels, from static tables: nothing is tuned at run time.

Tuning in front of a user costs seconds for each configuration, and once more for each length of a prompt. Each
operation has a table in its own folder; the ahead-of-time compile in the tests reads the same table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from vlm_eff.core.errors import CapabilityError, explain


@dataclass(frozen=True)
class Tiles:
    """Size of the tile a program works on, and how it is compiled.

    m, n:   rows and columns of the tile: queries and keys, or tokens and channels
    warps:  groups of 32 threads in a program
    stages: tiles that are loaded ahead in the hot loop
    """

    m: int
    n: int
    warps: int
    stages: int


# (class of architectures, width of a head or row, bytes of a number) -> tiles
Table = Mapping[tuple[int, int, int], Tiles]

# classes differ in what they can hold in shared memory: 163, 99, 227 and 227 KiB for a program
ARCHITECTURES = (80, 86, 90, 100)
SHARED_MEMORY = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10, 100: 227 << 10}


def two_parts(width: int) -> tuple[int, int]:
    """A width as two powers of two, the second with room to spare: 72 -> 64 + 16, 96 -> 64 + 32, 128 -> 128 + 0."""
    first = 1 << (width.bit_length() - 1)
    rest = width - first
    return first, max(16, 1 << (rest - 1).bit_length()) if rest else 0


def architecture(device: torch.device) -> int:
    """The class of architectures a device belongs to; that of Hopper where kernels are interpreted.

    8.6, 8.7, 8.9 and 12.x are one class: they have the smallest shared memory. What is newer than all of them is taken
    for the newest class that is known.
    """
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    if major == 8:
        return 80 if minor == 0 else 86
    return {9: 90, 10: 100, 11: 100, 12: 86}.get(major, 100)


def find(table: Table, arch: int, width: int, size: int) -> Tiles | None:
    """Tiles for the smallest width in the table that is at least `width`; None where there is none.

    size: bytes of a number. A class without rows of its own uses those of the class below that has the least shared
    memory among those that are left: 86 falls to nothing, 80, 90 and 100 fall to 86.
    """
    for known in (arch, *(() if arch == 86 else (86,))):
        widths = [w for a, w, s in table if a == known and s == size and w >= width]
        if widths:
            return table[known, min(widths), size]
    return None


def lookup(table: Table, device: torch.device, width: int, dtype: torch.dtype) -> Tiles:
    """Tiles for rows of `width` numbers of type `dtype` on a device.

    Raises:
        CapabilityError: the table has none; ask `why_no_tiles` first.
    """
    found = find(table, architecture(device), width, dtype.itemsize)
    if found is None:
        raise CapabilityError(
            explain(why_no_tiles(table, device, width, dtype) or "", "what the table holds", 'Use backend="torch"')
        )
    return found


def why_no_tiles(table: Table, device: torch.device, width: int, dtype: torch.dtype) -> str | None:
    """Why the table has no tiles for this; None when it has."""
    arch = architecture(device)
    if find(table, arch, width, dtype.itemsize) is not None:
        return None
    widest = max((w for a, w, s in table if s == dtype.itemsize), default=0)
    return f"rows of {width} numbers of {dtype} have no tiles on architecture {arch}; the widest is {widest}"
