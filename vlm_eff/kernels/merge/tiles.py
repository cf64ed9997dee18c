"""Tiles of the merge: places by numbers of a token."""

from __future__ import annotations

from vlm_eff.kernels.tiles import Tiles

# numbers of a token that a program holds, and the only width in the table
STEP = 128

TABLE = {
    (86, STEP, 2): Tiles(m=16, n=STEP, warps=4, stages=2),
    (86, STEP, 4): Tiles(m=16, n=STEP, warps=4, stages=2),
}
