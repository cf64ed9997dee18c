"""Tiles for as many rows as there are keys: products are what it costs, so that each number read meets many others.

A class of architectures without a line of its own uses that of 86, which has the least shared memory.
"""

from __future__ import annotations

from vlm_eff.kernels.tiles import Tiles

# what rows add up to: m packed rows by n keys
LSE_TABLE = {
    (86, 64, 2): Tiles(128, 128, 8, 3),
    (86, 128, 2): Tiles(128, 64, 8, 3),
    (86, 256, 2): Tiles(128, 64, 8, 2),
    (86, 256, 4): Tiles(16, 32, 8, 2),
    (90, 64, 2): Tiles(128, 128, 8, 3),
    (90, 128, 2): Tiles(128, 128, 8, 2),
    (90, 256, 2): Tiles(128, 64, 8, 2),
    (90, 256, 4): Tiles(16, 32, 8, 2),
}

# what keys get: m keys by n rows of one head. On 100 four warps would need all registers there are
TABLE = {
    (86, 128, 2): Tiles(128, 64, 4, 3),
    (86, 256, 2): Tiles(128, 64, 8, 2),
    (86, 256, 4): Tiles(32, 16, 8, 2),
    (100, 128, 2): Tiles(128, 64, 8, 3),
    (100, 256, 2): Tiles(128, 64, 8, 2),
    (100, 256, 4): Tiles(32, 16, 8, 2),
}
