"""Rows, keys and what hides some of them: the cases that both operations on scores are tried with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.kit import normal
from vlm_eff.kernels.column_scores import tiles as column_tiles
from vlm_eff.kernels.tiles import Tiles
from vlm_eff.kernels.window_scores import tiles as window_tiles

ROWS, KEYS = 20, 300
# what hides keys from rows, by name
SIGHTS = ("last rows", "columns", "left padding", "sliding", "tower", "mask", "mask of heads", "mask of keys")


def heads(
    generator: torch.Generator,
    width: int = 64,
    group: int = 2,
    rows: int = ROWS,
    keys: int = KEYS,
    dtype: torch.dtype = torch.float32,
    batch: int = 2,
    shared: int = 1,
) -> tuple[Tensor, Tensor]:
    """Queries [B, shared * group, rows, width] and keys [B, shared, keys, width]."""
    query = normal(generator, batch, shared * group, rows, width, dtype=dtype)
    return query, normal(generator, batch, shared, keys, width, dtype=dtype)


def sight(name: str, generator: torch.Generator, query: Tensor, key: Tensor) -> dict[str, Any]:
    """Arguments that hide keys, with some rows that see nothing."""
    batch, _, rows, _ = query.shape
    keys = key.shape[2]
    if name == "last rows":
        return {}
    if name == "columns":
        column = torch.randint(0, keys, (batch, rows), generator=generator)
        column[:, ::5] = -1
        return {"column": column}
    if name == "left padding":
        # beyond the first rows of the second sample, which then see nothing
        return {"first": torch.tensor([0, keys - rows + 3])[:batch]}
    if name == "sliding":
        last = torch.arange(keys - rows, keys)
        return {"first": (last - 70).clamp(min=0).expand(batch, -1)}
    if name == "tower":
        return {"causal": False}
    shape = {
        "mask": (batch, 1, rows, keys),
        "mask of heads": (batch, query.shape[1], rows, keys),
        "mask of keys": (batch, 1, 1, keys),
    }[name]
    looks = torch.rand(shape, generator=generator) < 0.6
    if looks.shape[2] > 1:
        looks[:, :, 4] = False
    return {"looks": looks, "causal": name != "mask of heads"}


def exact(operation: Any, query: Tensor, key: Tensor, **arguments: Any) -> Tensor:
    """What the definition makes of the same numbers in float64."""
    if arguments.get("lse") is not None:
        arguments["lse"] = arguments["lse"].double()
    made: Tensor = operation(query.double(), key.double(), **arguments, backend="reference")
    return made


@pytest.fixture(autouse=True)
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that float32 cannot have on a GPU: in the interpreter their number counts, not their size."""
    for tables in (window_tiles, column_tiles):
        for table, tiles in ((tables.LSE_TABLE, Tiles(64, 128, 4, 2)), (tables.TABLE, Tiles(128, 64, 4, 2))):
            for arch, width, size in list(table):
                if size == 4:
                    monkeypatch.setitem(table, (arch, width, size), tiles)
