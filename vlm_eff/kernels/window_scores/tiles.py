"""Tiles of the two passes, for few rows: keys are read at the speed of memory, so that many of them are on their way.

A class of architectures without a line of its own uses that of 86, which has the least shared memory.
"""

from __future__ import annotations

from vlm_eff.kernels.tiles import Tiles

# first pass: m packed rows by n keys. Wider tiles on 80 and 86 would spill registers
LSE_TABLE = {
    (86, 64, 2): Tiles(64, 64, 4, 3),
    (86, 128, 2): Tiles(64, 64, 4, 3),
    (86, 256, 2): Tiles(64, 64, 4, 2),
    (86, 256, 4): Tiles(16, 32, 8, 2),
    (90, 128, 2): Tiles(64, 128, 4, 3),
    (90, 256, 2): Tiles(64, 64, 4, 2),
    (90, 256, 4): Tiles(16, 32, 8, 2),
    (100, 128, 2): Tiles(64, 128, 4, 3),
    (100, 256, 2): Tiles(64, 64, 4, 2),
    (100, 256, 4): Tiles(16, 32, 8, 2),
}

# second pass: m keys, read once, by n packed rows
TABLE = {
    (86, 128, 2): Tiles(128, 64, 4, 2),
    (86, 256, 2): Tiles(128, 32, 4, 2),
    (86, 256, 4): Tiles(32, 16, 8, 2),
    (100, 128, 2): Tiles(128, 64, 8, 2),
    (100, 256, 2): Tiles(128, 32, 8, 2),
    (100, 256, 4): Tiles(32, 16, 8, 2),
}
