"""Tiles of `best_partner`: sources by goals. Features are read 64 at a time, so that their number does not matter."""

from __future__ import annotations

from vlm_eff.kernels.tiles import Tiles

# features of a step, and the only width in the table
STEP = 64

TABLE = {
    (86, STEP, 2): Tiles(m=128, n=64, warps=8, stages=2),
    (86, STEP, 4): Tiles(m=64, n=32, warps=4, stages=2),
    (90, STEP, 2): Tiles(m=128, n=64, warps=8, stages=3),
    (100, STEP, 2): Tiles(m=128, n=64, warps=8, stages=3),
}
