"""Tile sizes of the kernel, chosen by compiling ahead of time: no stack, shared memory within the limit.

Not by measuring: no GPU was at hand. Single precision has no tensor cores here (products are exact), and a tile of it
takes thirty times the instructions of one in half precision: it is for checking.
"""

from __future__ import annotations

from vlm_eff.kernels.tiles import Table, Tiles

_SINGLE_PRECISION: Table = {
    (86, 64, 4): Tiles(32, 32, 4, 2),
    (86, 128, 4): Tiles(32, 16, 4, 2),
    (86, 256, 4): Tiles(16, 16, 4, 2),
    (90, 64, 4): Tiles(32, 32, 4, 2),
    (90, 128, 4): Tiles(16, 16, 4, 2),
    (90, 256, 4): Tiles(16, 16, 4, 2),
    (100, 64, 4): Tiles(32, 16, 4, 2),
    (100, 128, 4): Tiles(16, 16, 4, 2),
    (100, 256, 4): Tiles(16, 16, 4, 2),
}

# for lists of which a block of queries is a multiple of 128: half the keys and values are read that 64 would read
TABLE: Table = {
    (86, 64, 2): Tiles(128, 64, 8, 2),
    (86, 80, 2): Tiles(128, 32, 8, 2),
    (86, 128, 2): Tiles(128, 64, 8, 2),
    (86, 256, 2): Tiles(64, 32, 8, 2),
    (90, 128, 2): Tiles(128, 64, 8, 3),
    (90, 256, 2): Tiles(128, 32, 8, 2),
    (100, 128, 2): Tiles(128, 64, 8, 3),
    (100, 256, 2): Tiles(128, 32, 8, 2),
    **_SINGLE_PRECISION,
}

# for shorter blocks of queries, as MInference's of 64
SMALL: Table = {
    (86, 64, 2): Tiles(64, 64, 4, 2),
    (86, 128, 2): Tiles(64, 32, 4, 2),
    (86, 256, 2): Tiles(32, 32, 4, 2),
    (90, 64, 2): Tiles(64, 64, 4, 3),
    (90, 128, 2): Tiles(64, 64, 4, 2),
    (90, 256, 2): Tiles(64, 32, 8, 2),
    (100, 128, 2): Tiles(64, 64, 4, 2),
    (100, 256, 2): Tiles(64, 32, 4, 2),
    **_SINGLE_PRECISION,
}
