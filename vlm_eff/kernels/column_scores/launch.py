"""Launches column sums: the kernels of window scores, with tiles for many rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlm_eff.kernels.column_scores.tiles import LSE_TABLE, TABLE
from vlm_eff.kernels.register import register
from vlm_eff.kernels.tiles import lookup
from vlm_eff.kernels.window_scores.launch import Problem, find_lse, find_scores, products
from vlm_eff.kernels.window_scores.visible import Sight


def _launch(
    query: Tensor, key: Tensor, column: Tensor | None, first: Tensor | None, looks: Tensor | None,
    weight: Tensor | None, lse: Tensor | None, scaling: float, softcap: float, causal: bool, grouped: bool,
) -> Tensor:  # fmt: skip
    sight = Sight(query.shape[2], key.shape[2], causal, column, first, looks)
    problem = Problem(query, key, sight, scaling, softcap)
    total = find_lse(problem, LSE_TABLE) if lse is None else lse
    tiles = lookup(TABLE, query.device, query.shape[3], query.dtype)
    return find_scores(problem, total, weight, "sum", grouped, tiles)


def _fake(
    query: Tensor, key: Tensor, column: Any, first: Any, looks: Any, weight: Any, lse: Any, scaling: float,
    softcap: float, causal: bool, grouped: bool,
) -> Tensor:  # fmt: skip
    heads = (key if grouped else query).shape[1]
    return key.new_empty((key.shape[0], heads, key.shape[2]), dtype=torch.float32)


def _flops(query: Any, key: Any, column: Any, first: Any, looks: Any, weight: Any, lse: Any, *rest: Any,
           **others: Any) -> int:  # fmt: skip
    return products(query, key) * (1 if lse is not None else 2)


COLUMNS = register("column_scores", _launch, fake=_fake, flops=_flops)


def column_scores(
    query: Tensor, key: Tensor, *, scaling: float, column: Tensor | None, first: Tensor | None,
    looks: Tensor | None, weight: Tensor | None, lse: Tensor | None, softcap: float | None, causal: bool,
    reduce: str, grouped: bool,
) -> Tensor:  # fmt: skip
    """See `op.column_scores`."""
    made: Tensor = COLUMNS(query, key, column, first, looks, weight, lse, scaling, softcap or 0.0, causal, grouped)
    return made
