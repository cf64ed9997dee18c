"""Merging evicted cache entries into kept ones: what keys, values and multiplicities become.

A merged entry stands for several. Softmax counts it once unless its logit gets `log_multiplicity`; with it, merging
entries that are equal changes nothing (the theorem behind the proportional attention of ToMe, arXiv:2210.09461).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.importance.entry_assign import Assignment, per_head, take
from vlm_eff.importance.keep import check_choice
from vlm_eff.importance.select import Selection, from_mask
from vlm_eff.kernels.merge import sum_into

Mixing = Literal["average", "pivotal", "weighted", "counted", "mass"]


@dataclass(frozen=True)
class MergedEntries:
    """Kept entries after a merge, in ascending order of their columns; K is the largest number of a row and head.

    index: [B, Hkv, K] column of each before the merge; valid: [B, Hkv, K] False for fillers, whose contents are zeros
    keys, values: [B, Hkv, K, Dh] in the dtype they came in; entries that took nobody in are unchanged bit for bit
    multiplicity: [B, Hkv, K] float32 (float64 if it came so) original entries that each stands for, 0 for fillers
    """

    index: Tensor
    valid: Tensor
    keys: Tensor
    values: Tensor
    multiplicity: Tensor


def merge_entries(
    keys: Tensor,
    values: Tensor,
    multiplicity: Tensor,
    kept: Tensor,
    present: Tensor,
    assignment: Assignment,
    mixing: Mixing = "counted",
    *,
    mass: Tensor | None = None,
    effective: bool = False,
) -> MergedEntries:
    """Let every kept entry take in the entries assigned to it, keys and values by the same weights.

    keys, values: [B, Hkv, S, Dh]; multiplicity: [B, Hkv, S] original entries that each stands for (1 before any merge)
    kept, present: [B, Hkv, S] bool; assignment: of the same entries; N below is how many of them entry i takes in
    mixing: "average"  (k_i + sum k_e) / (N + 1)
            "pivotal"  (k_i + sum (k_e + k_i) / 2) / (N + 1), the default of LOOK-M's released code
            "weighted" (k_i + sum cosine_e k_e) / (N + 1), which shrinks what is not alike
            "counted"  (m_i k_i + sum m_e k_e) / (m_i + sum m_e), so that merging twice equals merging once; ours
            "mass"     (a_i k_i + sum a_e k_e) / (a_i + sum a_e), a being `mass` [B, Hkv, S] of at least 0 (attention
                       received); as "counted" where nobody in a group has any
    effective: with "mass", an entry stands for exp(entropy of a / sum a) original ones and not for all. That is exact
               for one query whose own attention is `mass`; the sum of multiplicities is then no longer conserved
    The first three count entries and not what these stand for, as published; multiplicities add up in all. What has no
    target is simply evicted, and its multiplicity goes with it. Keys are mixed as they are cached: after rotation, as
    in LOOK-M. Mixing is in float32, or float64 if given so, in the order of the entries. Cost: one pass over those that
    are evicted, of which a float32 copy is alive.

    Raises:
        ConfigError: for an unknown mixing, for "mass" without `mass`, for either of `mass`, `effective` without "mass".
    """
    _check(mixing, mass, effective)
    real = (kept & present).flatten(0, 1)
    groups = _group(real, assignment.target.flatten(0, 1))
    count = per_head(multiplicity, kept)
    count = count.to(torch.promote_types(count.dtype, torch.float32))
    extra = assignment.cosine if mass is None else mass
    shares = _shares(mixing, groups, count, per_head(extra, kept).to(count.dtype))
    stands = groups.own(count) + groups.sum(groups.gone(count))
    if effective:
        stands = torch.where(groups.number == 0, stands, _effective(shares, groups, count))
    shape = (*kept.shape[:2], groups.stays.index.shape[1])
    return MergedEntries(
        groups.stays.index.view(shape),
        groups.stays.valid.view(shape),
        _mix(keys.flatten(0, 1), shares, groups).view(*shape, keys.shape[3]),
        _mix(values.flatten(0, 1), shares, groups).view(*shape, values.shape[3]),
        stands.view(shape),
    )


def log_multiplicity(multiplicity: Tensor) -> Tensor:
    """What to add to the logit of each entry [...]: log m, exactly 0 for m = 1; 0 for fillers, which the mask hides."""
    return torch.where(multiplicity > 0, multiplicity, 1.0).log()


@dataclass(frozen=True)
class _Groups:
    """Kept entries and what goes into them, rows and heads flat.

    stays: the K kept entries; goes: the E that go into one; into: [N, E] place among the kept, K for fillers
    number: [N, K] how many each takes in
    """

    stays: Selection
    goes: Selection
    into: Tensor
    number: Tensor

    def own(self, x: Tensor) -> Tensor:
        """[N, S] of the kept entries [N, K]."""
        return x.gather(1, self.stays.index).masked_fill(~self.stays.valid, 0.0)

    def gone(self, x: Tensor) -> Tensor:
        """[N, S] of those that go [N, E]; anything for fillers, whose sums nobody reads."""
        return x.gather(1, self.goes.index)

    def of(self, x: Tensor) -> Tensor:
        """[N, K] of the group that each one goes into [N, E], 1 for fillers."""
        return torch.nn.functional.pad(x, (0, 1), value=1.0).gather(1, self.into)

    def sum(self, x: Tensor) -> Tensor:
        """[N, E, ...] summed over the entries of each group [N, K, ...]."""
        # fillers go to a place that does not exist
        made = sum_into(x if x.ndim == 3 else x[:, :, None], self.into, self.stays.index.shape[1])
        return made if x.ndim == 3 else made[:, :, 0]


@dataclass(frozen=True)
class _Shares:
    """How much of each goes into the mixture: kept [N, K], gone [N, E]; the total divides their sum [N, K]."""

    own: Tensor
    gone: Tensor
    total: Tensor


def _group(kept: Tensor, target: Tensor) -> _Groups:
    stays, goes = from_mask(kept), from_mask((target >= 0) & ~kept)
    seat = kept.long().cumsum(1) - 1
    into = seat.gather(1, target.gather(1, goes.index).clamp(min=0))
    into = torch.where(goes.valid, into, stays.index.shape[1])
    number = torch.zeros(len(into), stays.index.shape[1] + 1, device=into.device)
    number.scatter_add_(1, into, torch.ones_like(into, dtype=number.dtype))
    return _Groups(stays, goes, into, number[:, :-1])


def _shares(mixing: Mixing, groups: _Groups, count: Tensor, extra: Tensor) -> _Shares:
    """`extra` [N, S] is the mass for "mass" and the cosine for "weighted"."""
    number = groups.number.to(count.dtype)
    one, each = torch.ones_like(number), groups.goes.valid.to(count.dtype)
    if mixing == "average":
        return _Shares(one, each, number + 1)
    if mixing == "pivotal":
        return _Shares(one + number / 2, each / 2, number + 1)
    if mixing == "weighted":
        return _Shares(one, groups.gone(extra), number + 1)
    own, gone = groups.own(count), groups.gone(count)
    if mixing == "mass":
        total = groups.own(extra) + groups.sum(groups.gone(extra))
        own = torch.where(total > 0, groups.own(extra), own)
        gone = torch.where(groups.of(total) > 0, groups.gone(extra), gone)
    # 0 / 0 for fillers, who take nobody in, so that nobody reads it
    return _Shares(own, gone, own + groups.sum(gone))


def _mix(x: Tensor, shares: _Shares, groups: _Groups) -> Tensor:
    """Contents of the kept entries [N, K, Dh] of `x` [N, S, Dh] after taking the others in."""
    work = torch.promote_types(x.dtype, torch.float32)
    first = take(x, groups.stays.index).masked_fill(~groups.stays.valid[:, :, None], 0.0)
    taken = take(x, groups.goes.index).to(work)
    mixed = first.to(work) * shares.own[:, :, None].to(work) + groups.sum(taken * shares.gone[:, :, None].to(work))
    mixed = (mixed / shares.total[:, :, None].to(work)).to(x.dtype)
    return torch.where((groups.number == 0)[:, :, None], first, mixed)


def _effective(shares: _Shares, groups: _Groups, count: Tensor) -> Tensor:
    """exp(entropy) of each group's shares [N, K], an entry of multiplicity m being m equal ones."""
    own = _entropy(shares.own / shares.total, groups.own(count))
    gone = _entropy(shares.gone / groups.of(shares.total), groups.gone(count))
    return (own + groups.sum(gone)).exp()


def _entropy(share: Tensor, count: Tensor) -> Tensor:
    """-p log(p / m), 0 for p = 0."""
    return torch.xlogy(share, torch.where(count > 0, count, 1.0)) - torch.xlogy(share, share)


def _check(mixing: str, mass: Tensor | None, effective: bool) -> None:
    check_choice("mixing", mixing, get_args(Mixing))
    if (mixing == "mass") != (mass is not None) or (effective and mass is None):
        got = f"mixing={mixing!r} {'with' if mass is not None else 'without'} mass, effective={effective}"
        accepted = "mass [B, Hkv, S] together with mixing='mass', and effective only there"
        raise ConfigError(explain(got, accepted, "Give the attention that entries received, or another mixing"))
