"""Tiles of quantising: m numbers for each thread, and n channels at most."""

from __future__ import annotations

from vlm_eff.kernels.tiles import Tiles

_TILE = Tiles(m=64, n=128, warps=4, stages=1)
# older versions of Triton (3.6) read groups of 64 half-precision entries with gaps and spill, unless a thread has more
_HALF = Tiles(m=128, n=128, warps=4, stages=1)
# (class of architectures, width, bytes of a number); the pass is bound by memory, and no architecture wants another
TABLE = {(86, width, size): _HALF if size == 2 else _TILE for width in (64, 128, 256) for size in (2, 4)}
