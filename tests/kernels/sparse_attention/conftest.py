"""Big tiles: in the interpreter a tile costs the same whatever its size."""

from __future__ import annotations

import pytest

from vlm_eff.kernels.sparse_attention import launch
from vlm_eff.kernels.tiles import Tiles


@pytest.fixture
def big_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    big = Tiles(128, 128, 8, 2)
    for table in ("TABLE", "SMALL"):
        monkeypatch.setattr(launch, table, {(86, 256, size): big for size in (2, 4)})
