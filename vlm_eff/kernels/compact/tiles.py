"""Tile sizes for copying rows: rows, bytes of each, warps, stages."""

from __future__ import annotations

from vlm_eff.kernels.tiles import Tiles

# a copy has no reuse: a thread moves 16 bytes at a time, and every architecture wants the same
ROWS = Tiles(8, 2048, 4, 1)
