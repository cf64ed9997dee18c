"""Tile sizes for attention among chosen tokens: rows, keys, warps, stages.

Found by compiling: each leaves no stack and no spilled register in any variant of the kernel (padding, fillers, soft
cap, logarithms) on its class. Single precision runs on the ordinary cores, whose operands take registers.
"""

from __future__ import annotations

from vlm_eff.kernels.tiles import Tiles

# widths are those of the parts a head is split into: 72 and 80 are 64 + 16
_HALF = {64: Tiles(128, 64, 8, 2), 96: Tiles(128, 64, 8, 2), 128: Tiles(128, 64, 8, 2), 256: Tiles(64, 32, 8, 2)}
_SINGLE = {96: Tiles(32, 32, 4, 1), 128: Tiles(32, 32, 8, 1), 256: Tiles(16, 32, 8, 1)}
_ROWS = {
    (86, 2): _HALF,
    (86, 4): _SINGLE,
    # Hopper holds twice the rows of a wide head
    (90, 2): _HALF | {256: Tiles(128, 32, 8, 2)},
}
TABLE = {(arch, width, size): tiles for (arch, size), rows in _ROWS.items() for width, tiles in rows.items()}
