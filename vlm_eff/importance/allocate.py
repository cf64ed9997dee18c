"""How one budget of cache entries is shared out over layers or heads: rules that return real weights, and the one
function that turns weights into whole numbers with an exact sum."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.importance.adaptive import share_out, shares


def apportion(weights: Tensor, total: int | Tensor, lo: int | Tensor = 0, hi: int | Tensor | None = None) -> Tensor:
    """Share `total` entries out by `weights` within bounds, exactly [N] or [B, N] int64.

    weights: [N] or [B, N] of at least 0; total: entries, one number or [B]; lo, hi: bounds of each share, one number or
        a tensor that broadcasts to the weights (`hi` None: no bound)
    A share is min(hi, max(lo, scale * weight)) with the one scale that spends the total (water filling), rounded by
    largest remainder; ties go to the lower index. Shares of weight 0 get more than `lo` only when all the others are
    full, and then evenly. Arithmetic is exact, on the host. `adaptive.apportion` is the same for budgets that may be
    out of reach, which it meets as nearly as it can; here they are an error.

    Raises:
        ConfigError: a weight is negative or not finite, a bound is above its other, or the total is outside
            [sum(lo), sum(hi)].
    """
    rows = weights.detach().double().cpu().reshape(weights.shape[:-1].numel(), weights.shape[-1])
    if not bool((rows.isfinite() & (rows >= 0)).all()):
        raise ConfigError(explain("weights below 0 or not finite", "weights of at least 0", "Clamp the scores first"))
    totals = torch.as_tensor(total, device="cpu").reshape(-1).expand(rows.shape[0]).tolist()
    low = _bound(lo, weights, rows)
    high = [[int(whole)] * rows.shape[1] for whole in totals] if hi is None else _bound(hi, weights, rows)
    made = []
    for weight, whole, least, most in zip(rows.tolist(), totals, low, high, strict=True):
        _within(int(whole), least, most)
        made.append(share_out(weight, int(whole), most, least))
    return torch.tensor(made, dtype=torch.long, device=weights.device).view(weights.shape)


def _bound(bound: int | Tensor, weights: Tensor, rows: Tensor) -> list[list[int]]:
    wide = torch.as_tensor(bound, device="cpu").expand(weights.shape)
    made: list[list[int]] = wide.reshape(rows.shape).long().tolist()
    return made


def _within(total: int, low: list[int], high: list[int]) -> None:
    if min(low, default=0) < 0 or any(least > most for least, most in zip(low, high, strict=True)):
        raise ConfigError(explain(f"bounds lo={low}, hi={high}", "0 <= lo <= hi everywhere", "Lower lo or raise hi"))
    if not sum(low) <= total <= sum(high):
        raise ConfigError(
            explain(
                f"a total of {total} entries",
                f"between {sum(low)} (all at their least) and {sum(high)} (all at their most)",
                "Change the total or the bounds",
            )
        )


def hybrid(weights: Tensor, share: float = 0.2) -> Tensor:
    """A mixture of equal shares and of the shares by `weights` [..., N] -> [..., N] float64 that sums to 1.

    share: fraction [0, 1] that follows the weights. 0.2 is what EffiVLM-Bench (ACL 2025) found best for vision-language
    models, where adaptive rules alone starve the later layers at small budgets.
    """
    if not 0 <= share <= 1:
        raise ConfigError(explain(f"share={share!r}", "a fraction from 0 to 1", "Give the adaptive part, such as 0.2"))
    flat = weights.flatten(0, -2) if weights.dim() > 1 else weights[None]
    adaptive = shares(flat, torch.ones_like(flat, dtype=torch.bool)).view(weights.shape)
    return (1 - share) / weights.shape[-1] + share * adaptive


def pyramid(layers: int, budget: Tensor, length: Tensor, window: int, beta: float = 20.0) -> Tensor:
    """Entries of each layer that fall linearly from the first to the last [B, L] float64 (PyramidKV, arXiv:2406.02069).

    layers: L; budget: [B] mean entries of a layer, the window among them; length: [B] entries that exist; window:
        entries kept in any case; beta: how many times the mean the last layer's part beyond the window is smaller
    The sum is L * budget before rounding: `apportion` keeps it so, where the official code floors the step and
    overspends by up to L(L-1)/2 entries. That code keeps equal shares while length < 2 * (budget - window); here the
    first layer is full and the others still fall. Nothing is taken from a row that fits into its budget.
    """
    free = (budget.double() - window).clamp(min=0)
    room = (length.double() - window).clamp(min=0)
    least = (free / beta).floor()
    most = torch.minimum(2 * free - least, room)
    least = 2 * free - most
    steps = torch.arange(layers, dtype=torch.float64, device=budget.device) / max(layers - 1, 1)
    fall = most[:, None] - (most - least)[:, None] * steps if layers > 1 else free[:, None]
    fits = length <= budget
    whole = torch.where(fits, length, budget.clamp(max=window)).double()
    return torch.where(fits[:, None], 0.0, fall) + whole[:, None]


def density(sparsity: Tensor) -> Tensor:
    """Weights of layers from the sparsity of their attention [..., L] -> 1 - sparsity (VL-Cache, arXiv:2410.23317).

    The paper clips the shares to [0.01, 1] of the prompt and loses the sum; `lo` and `hi` of `apportion` do not.
    """
    return 1 - sparsity.double()


def softmax(strength: Tensor, temperature: float = 1.0) -> Tensor:
    """Weights of layers from the strength of a sign such as entropy, by a softmax over them [..., L] (MEDA)."""
    return (strength.double() / temperature).softmax(-1)


def common_mass(scores: Tensor, total: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Entries of each layer when all hold the same fraction of their own mass: counts [B, L] int64, fraction [B].

    scores: [B, L, S] of at least 0; total: [B] entries of all layers together; present: [B, S] or [B, L, S]
    The k-th best entry of a layer is wanted as long as the better ones hold less than the common fraction, so the
    `total` entries with the least mass before them are the answer: no search, and the sum is exact. Ties go to the
    better rank, then to the lower layer. The fraction is the mass before the first entry left out, 1 when none is.
    PrefixKV (arXiv:2412.03409) searches the fraction, offline, over the mean of ten samples, and is content with a sum
    off by less than five; this is the same rule for the prompt at hand. Where fewer entries exist, all are taken.
    """
    batch, layers, width = scores.shape
    there = (present if present.dim() == 3 else present[:, None]).expand(scores.shape)
    flat, flat_there = scores.flatten(0, 1), there.flatten(0, 1)
    ordered = shares(flat, flat_there).masked_fill(~flat_there, -1.0).sort(dim=1, descending=True).values.clamp(min=0)
    before = (ordered.cumsum(1) - ordered).view(batch, layers, width)
    exists = torch.arange(width, device=scores.device) < there.sum(2, keepdim=True)
    # one list a row, rank by rank, so that a stable sort gives ties to the better rank and the lower layer
    queue = before.masked_fill(~exists, torch.inf).transpose(1, 2).flatten(1)
    order = queue.argsort(dim=1, stable=True)
    spend = torch.minimum(total.to(scores.device), there.sum((1, 2)))
    taken = torch.zeros_like(queue, dtype=torch.bool)
    taken.scatter_(1, order, torch.arange(queue.shape[1], device=scores.device) < spend[:, None])
    counts = taken.view(batch, width, layers).sum(1)
    next_one = queue.masked_fill(taken, torch.inf).amin(1) if queue.shape[1] else queue.new_full((batch,), torch.inf)
    return counts, next_one.clamp(max=1.0)
