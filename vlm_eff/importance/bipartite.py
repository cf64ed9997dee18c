"""Bipartite soft matching: which tokens are alike enough to become one (ToMe, arXiv:2210.09461, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.kernels.bipartite_match import best_partner


def bipartite_match(
    metric: Tensor,
    count: int | Tensor,
    *,
    protected: int = 0,
    valid: Tensor | None = None,
    segment: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Pair every second token with its most similar partner and merge the most similar pairs.

    Tokens at even places may go into tokens at odd places; several may go into one.

    metric:    [I, T, C] what is compared, by cosine
    count:     pairs to merge in each image; a number when all images have T tokens, else [I]
    protected: leading tokens (class, registers) that take no part and stay in front
    valid:     [I, T] False where an image has fewer than T tokens; None when all are there
    segment:   [I, T] ascending numbers; only tokens of one segment may pair (windows of a tower); None: one segment
    Returns (index [I, K], valid [I, K], into [I, T]): the tokens that stay, in the order protected, unmerged even ones,
    odd ones (inside each segment); which of these are real, None when all are; and the place in `index` that every
    token goes into, 0 for padding.
    Ties go to the lower place. The T/2 x T/2 similarities are never built; I T^2 C / 2 FLOPs.
    """
    images, tokens = metric.shape[:2]
    best, partner = _partners(metric, protected, valid, segment)
    rank = _rank(best)
    limit = count[:, None] if isinstance(count, Tensor) else count
    goes = torch.zeros(images, tokens, dtype=torch.bool, device=metric.device)
    goes[:, 0::2] = (rank < limit) & (best > -torch.inf)
    real = torch.ones_like(goes) if valid is None else valid
    place = torch.arange(tokens, device=metric.device)
    kind = torch.where(place < protected, 0, 1 + place % 2)
    key = (kind * tokens + place).expand(images, -1)
    if segment is not None:
        key = key + segment * (3 * tokens)
    order = key.masked_fill(goes | ~real, torch.iinfo(torch.long).max).argsort(dim=1, stable=True)
    stays = (real & ~goes).sum(1)
    # rows without padding and segments merge `count` each: nothing has to be read back from the device
    even = isinstance(count, int) and valid is None and segment is None
    width = tokens - int(count) if even else int(stays.max())
    index = order[:, :width]
    slot = torch.zeros_like(order).scatter_(1, order, place.expand_as(order))
    into = slot.clone()
    into[:, 0::2] = torch.where(goes[:, 0::2], slot.gather(1, partner), slot[:, 0::2])
    if even:
        return index, None, into
    return index, place[:width] < stays[:, None], into.masked_fill(~real, 0)


def match_into(
    metric: Tensor, goals: Tensor, sources: Tensor, count: int, first: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Merge the sources that are most like a goal, each into the goal it is most like.

    metric:  [I, T, C] what is compared, by cosine
    goals:   [I or 1, G] ascending places that others may go into; sources: [I or 1, S] the ascending other places
    count:   sources to merge in each image, at most S
    first:   [I or 1, S] True for sources that go before all others, however unlike; None for none
    Returns (home [I, T - count], into [I, T]): the places that stay, ascending, and for every token its place there.
    Ties go to the lower place. The S x G similarities are never built as a whole; 2 I S G C FLOPs.
    """
    images, tokens, width = metric.shape
    goals, sources = goals.expand(images, -1), sources.expand(images, -1)
    known = metric.detach()
    best, partner = best_partner(*(known.gather(1, at[:, :, None].expand(-1, -1, width)) for at in (sources, goals)))
    goes = _rank(best if first is None else best.masked_fill(first, torch.inf)) < count
    stays = torch.ones(images, tokens, dtype=torch.bool, device=metric.device).scatter_(1, sources, ~goes)
    slot = stays.cumsum(1) - 1
    found = slot.gather(1, goals.gather(1, partner))
    into = slot.scatter(1, sources, torch.where(goes, found, slot.gather(1, sources)))
    # each image keeps as many: nothing has to be read back from the device
    return (~stays).to(torch.uint8).argsort(dim=1, stable=True)[:, : tokens - count], into


def _partners(metric: Tensor, protected: int, valid: Tensor | None, segment: Tensor | None) -> tuple[Tensor, Tensor]:
    """Similarity [I, A] of each even token to its best odd partner (-inf: none), and the partner's place [I, A]."""
    group = None
    if protected or valid is not None or segment is not None:
        place = torch.arange(metric.shape[1], device=metric.device)
        barred = (place < protected).expand(metric.shape[:2])
        if valid is not None:
            barred = barred | ~valid
        group = torch.where(barred, -1, 0 if segment is None else segment)
    even, odd = (slice(None), slice(0, None, 2)), (slice(None), slice(1, None, 2))
    # what comes out are places: no gradient passes through them
    known = metric.detach()
    best, found = best_partner(
        known[even],
        known[odd],
        source_group=None if group is None else group[even],
        goal_group=None if group is None else group[odd],
    )
    # without anybody to go to, the place is looked at as little as the similarity
    return best, (found * 2 + 1).clamp(max=max(metric.shape[1] - 1, 0))


def _rank(best: Tensor) -> Tensor:
    """Place of each value in descending order, ties in order."""
    order = (-best).argsort(dim=1, stable=True)
    places = torch.arange(best.shape[1], device=best.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)
