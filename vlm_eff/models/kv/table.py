"""Attention whose logits are scaled by what looks and what is looked at, without a matrix of factors.

Scaling a logit is scaling its key, so the queries of one modality attend as they always do, to keys that are scaled for
them. Queries of different lines of the table attend apart, each time all of them, and every one keeps its own result:
no mask has to be cut, none has to be made where the base function needs none, and eager equals sdpa.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlm_eff.core.cache import PADDING, TEXT, LogitSite, ScaleLogits
from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.core.plugin import AttentionSite, LayerKeys, Plugin, QueryRow, QueryRows
from vlm_eff.importance.modality_table import key_factors, modality_table
from vlm_eff.models.call import Call
from vlm_eff.models.kv.attend import PackedAttention


@dataclass(frozen=True)
class Line:
    """One line [M] of a table on the device, the queries [B, Q] that it is for, and whether it changes anything."""

    factors: Tensor
    members: Tensor
    neutral: bool


@dataclass(frozen=True)
class ScaledAttention:
    """Attends once for each line of the table that this call's queries need.

    keys: [B, 1 or Hkv, S] modality of every key; packed: what attends where the cache is packed, or None
    """

    lines: tuple[Line, ...]
    keys: Tensor
    packed: PackedAttention | None

    def attend(
        self, run: Callable[..., Any], module: nn.Module, states: tuple[Tensor, Any, Any], mask: Any, kwargs: Any
    ) -> Any:
        """Output [B, Q, H, Dh], and from eager attention the weights [B, H, Q, S]."""
        output = weights = None
        for line in self.lines:
            new, seen = self._once(line, run, module, states, mask, kwargs)
            if output is None:
                output, weights = new, seen
                continue
            output = torch.where(line.members[:, :, None, None], new, output)
            weights = None if weights is None else torch.where(line.members[:, None, :, None], seen, weights)
        return output, weights

    def _once(
        self,
        line: Line,
        run: Callable[..., Any],
        module: nn.Module,
        states: tuple[Tensor, Any, Any],
        mask: Any,
        kwargs: Any,
    ) -> Any:
        query, key, value = states
        factors = None if line.neutral else key_factors(line.factors, self.keys)
        if self.packed is not None:
            return replace(self.packed, factors=factors).attend(run, module, states, mask, kwargs)
        if factors is not None:
            key = (key * factors[..., None]).to(key.dtype)
        return run(module, query, key, value, mask, **kwargs)


def table_of(plugins: tuple[Plugin, ...]) -> Tensor | None:
    """The table [M, M] that a plugin gives, or None where all factors are 1.

    Raises:
        CapabilityError: another plugin reads attention inside the decoder, where the table would have to be known.
    """
    answers = [(p, p.at(site, None)) for p in plugins for site in p.sites if isinstance(site, LogitSite)]
    tables = [(p, modality_table(made.factors)) for p, made in answers if isinstance(made, ScaleLogits)]
    changing = [(p, table) for p, table in tables if bool((table != 1).any())]
    if not changing:
        return None
    for plugin in plugins:
        inside = any(isinstance(site, AttentionSite) for site in plugin.sites)
        if inside or plugin.revives or any(isinstance(n, QueryRow | QueryRows | LayerKeys) for n in plugin.needs):
            raise CapabilityError(
                explain(
                    f"{changing[0][0].name!r} beside {plugin.name!r}, which reads queries and keys of decoder layers",
                    "plugins that score before the decoder, or between forward passes from observed rows",
                    "Leave one of the two out",
                )
            )
    return changing[0][1]


def lines_of(table: Tensor, call: Call, queries: Tensor) -> tuple[Line, ...]:
    """The different lines of the table that queries of modality [B, Q] need; the first is for whoever has no other."""
    # words alone are known without asking the device
    found = queries.unique().tolist() if call.modality is not None else [TEXT]
    there = [modality for modality in found if modality != PADDING] or [TEXT]
    groups: dict[tuple[float, ...], list[int]] = {}
    for modality in there:
        groups.setdefault(tuple(table[modality].tolist()), []).append(modality)
    return tuple(
        Line(
            table[members[0]].to(queries.device),
            torch.isin(queries, torch.tensor(members, dtype=queries.dtype, device=queries.device)),
            all(factor == 1 for factor in factors),
        )
        for factors, members in groups.items()
    )
