"""Static tile sizes of decoding over packed entries; see `vlm_eff/kernels/tiles.py`.

m: rows of the smallest tile; n: entries of a tile. Four warps: eight take half as many instructions again on 16 rows.
Twice the entries would take 6 % fewer instructions and a third more registers, and bytes in flight are what counts.
"""

from __future__ import annotations

from vlm_eff.kernels.tiles import ARCHITECTURES, Table, Tiles

# rows of float32 are for the interpreter: `launch.limits` says why a GPU does not take it
_PACKED = {2: Tiles(16, 128, 4, 3), 4: Tiles(16, 128, 4, 3)}
# entries as they are take four times the shared memory
_EXACT = {2: Tiles(16, 64, 4, 2), 4: Tiles(16, 64, 4, 2)}
_WIDTHS = (64, 128, 256)

PACKED: Table = {(arch, width, size): _PACKED[size] for arch in ARCHITECTURES for width in _WIDTHS for size in _PACKED}
EXACT: Table = {(arch, width, size): _EXACT[size] for arch in ARCHITECTURES for width in _WIDTHS for size in _EXACT}
