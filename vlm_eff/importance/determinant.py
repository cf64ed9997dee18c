"""Greedy choices that are good and unlike one another: likely under a determinantal point process.

Chosen tokens leave the race, so that none is chosen twice; ties go to the lower index.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.importance import similarity
from vlm_eff.importance.greedy import first_choices, most_steps
from vlm_eff.importance.similarity import Lines, lines, normalised, pairwise

# a residual this small next to the token's own weight is rounding: the token adds nothing to the chosen ones
_ROUNDING = 1e-5
# tokens that are likely to be chosen soon, whose lines are worked out together
_AHEAD, _LEAST = 64, 8


def dpp(x: Tensor, quality: Tensor, count: Tensor, valid: Tensor) -> Tensor:
    """Mask [B, V] of `count` [B] tokens that are good and unlike one another: greedy MAP of a determinantal process.

    x: [B, V, D]; quality: [B, V] non-negative; the kernel is L_ij = quality_i * cosine(x_i, x_j) * quality_j.
    Each step takes the token that makes the determinant of the chosen block largest and updates what is left of the
    others by one line of the Cholesky factor (Chen et al., arXiv:1709.05135, algorithm 1). What is left never falls
    below 0; when nothing is left, the lower index goes first. Cost of step t: V * t; memory: V * count.
    On a CPU the lines of the tokens with most left are worked out together, before they are asked for: mostly they
    will be, and one product of matrices is several times faster than products with vectors. Where a quarter of the
    tokens or more is chosen, or where the guesses are bad, a table of up to 4,096 tokens is worked out instead. On a
    GPU every step takes a line of the table, and nothing is asked of the device.
    """
    x, quality = x.detach(), quality.detach()
    if x.is_cuda:
        return dpp_lines(lines(x, valid), quality, count, valid)
    made = torch.zeros_like(valid)
    weight = quality.float().masked_fill(~valid, 0.0)
    for row, steps in enumerate(torch.minimum(count, valid.sum(1)).tolist()):
        made[row, _ahead(x[row], weight[row], valid[row], steps)] = True
    return made


def _ahead(x: Tensor, weight: Tensor, valid: Tensor, steps: int) -> list[int]:
    """The `steps` choices of one row, in their order: x [V, D], weight and valid [V]."""
    own, kernel = weight.square(), _Kernel(x, weight, valid, steps)
    least, floor = own * _ROUNDING, torch.where(valid, 0.0, -torch.inf)
    left, factor = own + floor, own.new_empty(steps, len(own))
    # lines of what is left of the kernel, and whose they are
    rest, number, done = own, dict[int, int](), 0
    made: list[int] = []
    for step in range(steps):
        pivot, place = left.max(0)
        value, column = float(pivot), int(place)
        made.append(column)
        if value > 0:
            if column not in number:
                likely = kernel.likely(left, column, step)
                number = {token: line for line, token in enumerate(likely)}
                rest = kernel.lines(likely).addmm_(factor[:done, likely].T, factor[:done], alpha=-1)
            update = torch.div(rest[number[column]], value**0.5, out=factor[done])
            done += 1
            left.addcmul_(update, update, value=-1)
            rest.addr_(update[list(number)], update, alpha=-1)
        floor[column] = left[column] = -torch.inf
        left = torch.where(left > least, left, floor)
    return made


class _Kernel:
    """Lines of the kernel of one row, as many at a time as will probably be used."""

    def __init__(self, x: Tensor, weight: Tensor, valid: Tensor, steps: int) -> None:
        self._x, self._weight, self._valid, self._steps = x, weight, valid, steps
        self._turns = self._made = 0
        # a table costs as much as half of all lines, and about twice as many are made as are asked for
        self._table = self._all() if len(x) <= similarity.TABLE and 4 * steps > len(x) else None
        self._unit = normalised(x) if self._table is None else x

    def _all(self) -> Tensor:
        return pairwise(self._x[None], self._valid[None])[0]

    def likely(self, left: Tensor, column: int, step: int) -> list[int]:
        """The places with most left [V] before `step`, `column` among them; fewer after turns that were little used."""
        used = 4 * step // self._turns if self._turns else _AHEAD
        number = min(_AHEAD, max(self._steps - step, _LEAST), max(used, _LEAST))
        small = self._table is None and len(left) <= similarity.TABLE
        # if it goes on as it went, the rest costs more than a table
        if small and 2 * self._made * (self._steps - step) > step * len(left) > 0:
            self._table = self._all()
        self._turns, self._made = self._turns + 1, self._made + number
        found: list[int] = left.topk(min(number, len(left))).indices.tolist()
        return found if column in found else [column, *found[1:]]

    def lines(self, places: list[int]) -> Tensor:
        """Lines [P, V] of the kernel."""
        like = (self._unit[places] @ self._unit.T).clamp_(-1, 1) if self._table is None else self._table[places]
        return like.mul_(self._weight[places][:, None]).mul_(self._weight)


def dpp_lines(line: Lines, quality: Tensor, count: Tensor, valid: Tensor) -> Tensor:
    """`dpp` for any similarity with ones on its diagonal that gives one line [B, V] at a time.

    All rows of the batch go together, and only the number of steps is asked of the device.
    """
    weight = quality.float().masked_fill(~valid, 0.0)
    own = weight.square()
    least, floor = own * _ROUNDING, torch.where(valid, 0.0, -torch.inf)
    left, steps = own + floor, most_steps(count, valid)
    factor, made = own.new_empty(own.shape[0], steps, own.shape[1]), []
    for step in range(steps):
        pivot, column = left.max(1, keepdim=True)
        made.append(column[:, 0])
        rest = line(column[:, 0]).mul(weight.gather(1, column)).mul_(weight)
        if step:
            done = factor[:, :step]
            known = done.gather(2, column[:, :, None].expand(-1, step, 1)).mT
            rest = torch.baddbmm(rest[:, None], known, done, alpha=-1)[:, 0]
        # with nothing left of the pivot there is nothing to take from the others
        root = torch.where(pivot > 0, pivot.clamp(min=torch.finfo(pivot.dtype).tiny).sqrt(), torch.inf)
        update = torch.div(rest, root, out=factor[:, step])
        left.addcmul_(update, update, value=-1)
        for gone in (floor, left):
            gone.scatter_(1, column, -torch.inf)
        left = torch.where(left > least, left, floor)
    return first_choices(made, count, valid)
