"""Launching the search for partners."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.kernels.bipartite_match.tiles import STEP, TABLE
from vlm_eff.kernels.register import register
from vlm_eff.kernels.tiles import lookup, why_no_tiles
from vlm_eff.kernels.triton_here import why_not_dense

# programs that keep a large GPU busy: where the sources alone make fewer, goals are shared out among several
_BUSY = 132


def limits(
    source: Tensor,
    goal: Tensor,
    source_group: Tensor | None,
    goal_group: Tensor | None,
    apart: bool,
    slack: float,
) -> str | None:
    """Why the kernel cannot run on these arguments; None when it can."""
    if (reason := why_not_dense(source, goal)) is not None:
        return reason
    if any(x.shape[1] * x.stride(1) >= 1 << 31 for x in (source, goal)):
        return "a row of tokens spans 2**31 numbers or more"
    return why_no_tiles(TABLE, source.device, STEP, source.dtype)


def _launch(
    source: Tensor,
    goal: Tensor,
    source_group: Tensor | None,
    goal_group: Tensor | None,
    apart: bool,
    slack: float,
) -> tuple[Tensor, Tensor]:
    from vlm_eff.kernels.bipartite_match.kernel import best_partner_kernel

    rows, sources, width = source.shape
    goals = goal.shape[1]
    tiles = lookup(TABLE, source.device, STEP, source.dtype)
    # rows of float32 are multiplied without tensor cores, from registers: half as many features at a time
    step = STEP if source.dtype.itemsize == 2 else STEP // 2
    lines = -(-sources // tiles.m)
    splits, share = _shares(goals, rows * lines, tiles.n)
    best = torch.empty(rows, splits, sources, dtype=torch.float32, device=source.device)
    lengths = [torch.linalg.vector_norm(x, dim=2, dtype=torch.float32) for x in (source, goal)]
    groups = [x if group is None else group.contiguous() for x, group in ((source, source_group), (goal, goal_group))]
    numbers = (sources, goals, lines, share, *source.stride()[:2], *goal.stride()[:2])

    def search(target: Tensor, first: bool) -> Tensor:
        partner = torch.empty_like(best, dtype=torch.int32)
        best_partner_kernel[(rows * lines, splits)](
            source,
            goal,
            *lengths,
            *groups,
            target,
            best,
            partner,
            *numbers,
            WIDTH=width,
            STEP=step,
            REST=max(16, 1 << (width % step - 1).bit_length()),
            GROUPED=source_group is not None,
            APART=apart,
            FIRST=first,
            BLOCK_M=tiles.m,
            BLOCK_N=tiles.n,
            STAGES=tiles.stages,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
            enable_fp_fusion=True,
        )
        return partner

    if rows * sources == 0:
        return _fake(source, goal, source_group, goal_group, apart, slack)
    partner = search(lengths[0], False)
    most, split = best.max(1)
    place = partner.gather(1, split[:, None])[:, 0]
    if slack:
        place = torch.minimum(place, search(most - slack, True).amin(1))
    return most, place.long()


def _shares(goals: int, programs: int, tile: int) -> tuple[int, int]:
    """How many programs share the goals of the same sources, and how many goals each one has: whole tiles."""
    tiles = max(1, -(-goals // tile))
    wanted = min(tiles, -(-_BUSY // max(1, programs)))
    each = -(-tiles // wanted)
    return -(-tiles // each), each * tile


def _fake(
    source: Tensor,
    goal: Tensor,
    source_group: Tensor | None,
    goal_group: Tensor | None,
    apart: bool,
    slack: float,
) -> tuple[Tensor, Tensor]:
    best = source.new_empty(source.shape[:2], dtype=torch.float32)
    return best, torch.empty_like(best, dtype=torch.long)


def _flops(
    source: tuple[int, ...],
    goal: tuple[int, ...],
    source_group: tuple[int, ...] | None,
    goal_group: tuple[int, ...] | None,
    apart: bool,
    slack: float,
    *,
    out_shape: object,
) -> int:
    rows, sources, width = source
    return 2 * rows * sources * goal[1] * width * (2 if slack else 1)


best_partner = register("best_partner", _launch, fake=_fake, flops=_flops)
