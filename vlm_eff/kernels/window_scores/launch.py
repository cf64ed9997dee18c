"""Launches the two passes; grids come from shapes alone, so that the host never waits for the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_eff.kernels.register import register
from vlm_eff.kernels.tiles import Table, Tiles, lookup, two_parts, why_no_tiles
from vlm_eff.kernels.triton_here import why_not_dense
from vlm_eff.kernels.window_scores.tiles import LSE_TABLE, TABLE
from vlm_eff.kernels.window_scores.visible import Sight

WIDTHS = (16, 32, 64, 72, 80, 96, 128, 256)
_LOG2E = 1.4426950408889634
# programs a processor of a GPU is given, so that all are busy until the end; keys at least that a part of a row has
_WAVES, _SHORTEST = 2, 512


def limits(query: Tensor, key: Tensor, **others: Any) -> str | None:
    """Why the kernels cannot run on these arguments; None when they can."""
    width = query.shape[3]
    if width not in WIDTHS:
        return f"heads are {width} wide, and the kernels take {', '.join(map(str, WIDTHS))}"
    if (reason := why_not_dense(query, key)) is not None:
        return reason
    for table in (LSE_TABLE, TABLE):
        if (reason := why_no_tiles(table, query.device, width, query.dtype)) is not None:
            return reason
    return None


@dataclass(frozen=True)
class Problem:
    """Everything both passes are told: what the rows are, and what they may look at."""

    query: Tensor
    key: Tensor
    sight: Sight
    scaling: float
    softcap: float

    @property
    def pairs(self) -> int:
        """Pairs of a sample and a key head."""
        return self.key.shape[0] * self.key.shape[1]

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.query.shape[1] // self.key.shape[1]

    @property
    def mode(self) -> int:
        """0: rows see every key; 1: the rows are the last ones; 2: columns say what they see."""
        return 0 if not self.sight.causal else 1 if self.sight.column is None else 2

    def sizes(self) -> tuple[int, ...]:
        """Key heads, group, rows, keys, and keys in front of the rows."""
        rows, keys = self.sight.rows, self.sight.keys
        return self.key.shape[1], self.group, rows, keys, keys - rows

    def factors(self) -> tuple[float, float]:
        """What a product is multiplied by, and the cap, for logits of base 2."""
        if self.softcap:
            return self.scaling / self.softcap, self.softcap * _LOG2E
        return self.scaling * _LOG2E, 0.0

    def masks(self) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Column, first and looks, the query in place of what there is not, and their strides."""
        sight, none = self.sight, self.query
        column = none if sight.column is None else sight.column
        first = none if sight.first is None else sight.first
        looks = none if sight.looks is None else sight.looks.view(torch.uint8)
        strides = [*(column.stride() if sight.column is not None else (0, 0))]
        strides += [0, 0] if sight.first is None else [first.stride(0), first.stride(1) if first.dim() == 2 else 0]
        return (column, first, looks), (*strides, *self._looking(looks))

    def flags(self) -> dict[str, Any]:
        """Constants of both kernels."""
        width = self.query.shape[3]
        wide, rest = two_parts(width)
        return {
            "WIDTH": width,
            "D1": wide,
            # numbers in 16 bytes, where every row begins at a multiple of them
            "ALIGN": _alignment(self.query, self.key),
            "D2": rest,
            "CAUSAL": self.mode,
            "FIRST": self.sight.first is not None,
            "LOOKS": self.sight.looks is not None,
            "CAP": self.softcap != 0,
        }

    def _looking(self, looks: Tensor) -> tuple[int, ...]:
        """Strides of looks by sample, key head, query head of a group, row and key."""
        if self.sight.looks is None:
            return (0, 0, 0, 0, 0)
        batch, head, row, key = looks.stride()
        count, shared = looks.shape[1], self.key.shape[1]
        by_head = (0, 0) if count == 1 else (head, 0) if count == shared else (head * self.group, head)
        return (batch, *by_head, 0 if looks.shape[2] == 1 else row, key)


def _problem(
    query: Tensor, key: Tensor, column: Tensor | None, first: Tensor | None, looks: Tensor | None,
    scaling: float, softcap: float, causal: bool,
) -> Problem:  # fmt: skip
    return Problem(query, key, Sight(query.shape[2], key.shape[2], causal, column, first, looks), scaling, softcap)


def find_lse(problem: Problem, table: Table, splits: int = 0) -> Tensor:
    """The first pass [B, H, R]; splits: parts that the keys are divided into, 0 to fill the device."""
    from vlm_eff.kernels.window_scores.kernel import join_kernel, lse_kernel

    query, key = problem.query, problem.key
    tiles = lookup(table, query.device, query.shape[3], query.dtype)
    rows, keys = problem.group * problem.sight.rows, problem.sight.keys
    m = packed_tile(rows, tiles.m)
    blocks = -(-rows // m) * problem.pairs
    parts = min(splits or _parts(blocks, keys, query.device), -(-keys // tiles.n))
    chunk = -(-keys // (parts * tiles.n)) * tiles.n
    parts = -(-keys // chunk)
    out = torch.empty(parts, *query.shape[:3], dtype=torch.float32, device=query.device)
    masks, strides = problem.masks()
    lse_kernel[(blocks, parts)](
        query, key, *masks, out, *query.stride()[:3], *key.stride()[:3], *strides, problem.pairs, *problem.sizes(),
        chunk, *problem.factors(), **problem.flags(), BM=m, BN=tiles.n, STAGES=tiles.stages,
        num_warps=tiles.warps, num_stages=tiles.stages, enable_fp_fusion=True,
    )  # fmt: skip
    if parts == 1:
        return out[0]
    joined = torch.empty_like(out[0])
    count = joined.numel()
    join_kernel[(-(-count // 64),)](
        out, joined, count, parts, BLOCK=64, SPLITS=1 << (parts - 1).bit_length(),
        num_warps=4, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return joined


def find_scores(
    problem: Problem, lse: Tensor, weight: Tensor | None, reduce: str, grouped: bool, tiles: Tiles
) -> Tensor:
    """The second pass [B, Hkv, S] or [B, H, S]; heads of a group are packed where there are few rows."""
    from vlm_eff.kernels.window_scores.kernel import scores_kernel

    query, key = problem.query, problem.key
    packed = grouped and (problem.mode != 1 or problem.sight.rows <= tiles.n)
    out = torch.empty(
        key.shape[0], key.shape[1] if packed else query.shape[1], key.shape[2], dtype=torch.float32, device=key.device
    )
    rows = problem.sight.rows * (problem.group if packed else 1)
    masks, strides = problem.masks()
    by_row = problem.sight.first is not None and problem.sight.first.dim() == 2
    everywhere = problem.mode == 2 or by_row or problem.sight.looks is not None or (problem.mode == 1 and packed)
    weights = query if weight is None else weight.float()
    # a mask takes as many registers as the logits themselves
    most = tiles.n if problem.sight.looks is None else max(16, tiles.n // 2)
    scores_kernel[(-(-key.shape[2] // tiles.m) * problem.pairs * (1 if packed else problem.group),)](
        query, key, lse.float().contiguous(), *masks, weights, out, *query.stride()[:3], *key.stride()[:3], *strides,
        *((0, 0) if weight is None else weights.stride()), *problem.sizes(), *problem.factors(), **problem.flags(),
        BN=tiles.m, BR=packed_tile(rows, most), STAGES=tiles.stages, WEIGHED=weight is not None,
        LARGEST=reduce == "max", PACKED=packed, MASKS=2 if everywhere else problem.mode,
        num_warps=tiles.warps, num_stages=tiles.stages, enable_fp_fusion=True,
    )  # fmt: skip
    if packed or not grouped:
        return out
    by_head = out.unflatten(1, (key.shape[1], problem.group))
    return by_head.sum(2) if reduce == "sum" else by_head.amax(2)


def _alignment(*tensors: Tensor) -> int:
    most = 16 // tensors[0].element_size()
    return most if all(stride % most == 0 for tensor in tensors for stride in tensor.stride()[:3]) else 1


def packed_tile(rows: int, most: int) -> int:
    """Rows of a tile: the power of two that holds them all, from 16, which a product needs, up to `most`."""
    return min(most, max(16, 1 << (rows - 1).bit_length()))


def _parts(blocks: int, keys: int, device: torch.device) -> int:
    """Parts of the keys, so that the device is full and no part too short to be worth joining."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
    return max(1, min(_WAVES * processors // blocks, keys // _SHORTEST, 64))


def _launch_lse(
    query: Tensor, key: Tensor, column: Tensor | None, first: Tensor | None, looks: Tensor | None,
    scaling: float, softcap: float, causal: bool, splits: int = 0,
) -> Tensor:  # fmt: skip
    return find_lse(_problem(query, key, column, first, looks, scaling, softcap, causal), LSE_TABLE, splits)


def _launch_scores(
    query: Tensor, key: Tensor, column: Tensor | None, first: Tensor | None, looks: Tensor | None,
    weight: Tensor | None, lse: Tensor | None, scaling: float, softcap: float, causal: bool, reduce: str,
    grouped: bool, splits: int = 0,
) -> Tensor:  # fmt: skip
    problem = _problem(query, key, column, first, looks, scaling, softcap, causal)
    total = find_lse(problem, LSE_TABLE, splits) if lse is None else lse
    tiles = lookup(TABLE, query.device, query.shape[3], query.dtype)
    return find_scores(problem, total, weight, reduce, grouped, tiles)


def _fake_lse(query: Tensor, *rest: Any, **others: Any) -> Tensor:
    return query.new_empty(query.shape[:3], dtype=torch.float32)


def _fake_scores(
    query: Tensor, key: Tensor, column: Any, first: Any, looks: Any, weight: Any, lse: Any, scaling: float,
    softcap: float, causal: bool, reduce: str, grouped: bool, splits: int = 0,
) -> Tensor:  # fmt: skip
    heads = (key if grouped else query).shape[1]
    return key.new_empty((key.shape[0], heads, key.shape[2]), dtype=torch.float32)


def products(query: Any, key: Any) -> int:
    """FLOPs of all products of rows and keys, given shapes."""
    return int(2 * query[0] * query[1] * query[2] * key[2] * query[3])


def _flops_lse(query: Any, key: Any, *rest: Any, **others: Any) -> int:
    return products(query, key)


def _flops_scores(query: Any, key: Any, column: Any, first: Any, looks: Any, weight: Any, lse: Any, *rest: Any,
                  **others: Any) -> int:  # fmt: skip
    return products(query, key) * (1 if lse is not None else 2)


LSE = register("window_lse", _launch_lse, fake=_fake_lse, flops=_flops_lse)
SCORES = register("window_scores", _launch_scores, fake=_fake_scores, flops=_flops_scores)


def window_lse(
    query: Tensor, key: Tensor, *, scaling: float, column: Tensor | None, first: Tensor | None,
    looks: Tensor | None, softcap: float | None, causal: bool,
) -> Tensor:  # fmt: skip
    """See `op.window_lse`."""
    made: Tensor = LSE(query, key, column, first, looks, scaling, softcap or 0.0, causal)
    return made


def window_scores(
    query: Tensor, key: Tensor, *, scaling: float, column: Tensor | None, first: Tensor | None,
    looks: Tensor | None, weight: Tensor | None, lse: Tensor | None, softcap: float | None, causal: bool,
    reduce: str, grouped: bool,
) -> Tensor:  # fmt: skip
    """See `op.window_scores`."""
    made: Tensor = SCORES(
        query, key, column, first, looks, weight, lse, scaling, softcap or 0.0, causal, reduce, grouped
    )
    return made
