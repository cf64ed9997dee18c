"""Answers what plugins want to see: taps on attention, one row of logits, keys, and attention in the vision tower."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vlm_eff.core.errors import StateError, explain
from vlm_eff.core.handle import Undo
from vlm_eff.core.plugin import (
    AttentionSite,
    LayerInput,
    LayerKeys,
    Plugin,
    QueryRow,
    QueryRows,
    TowerFeatures,
    TowerObservation,
)
from vlm_eff.core.tower import TowerSite
from vlm_eff.kernels.compact import compact
from vlm_eff.models.adapter import Adapter
from vlm_eff.models.call import Call
from vlm_eff.models.observe import (
    Source,
    Tapped,
    projected_source,
    row_logits,
    tapped_keys,
    tapped_source,
)  # fmt: skip
from vlm_eff.models.received import reduce_rows
from vlm_eff.models.rows import Attended, Rows
from vlm_eff.models.tap import Instead, install_tap
from vlm_eff.models.token_map import TokenMap
from vlm_eff.models.tower import TowerObserver


@dataclass(frozen=True)
class Input:
    """A decoder layer's input at the survivors: what `QueryRow(when="before")` is computed from."""

    hidden: Tensor
    rope: Any
    mask: Any
    past_key: Tensor | None


class Observer:
    """Installs the taps that the plugins need and keeps what they see, by call."""

    def __init__(self, adapter: Adapter, plugins: tuple[Plugin, ...]) -> None:
        self._adapter = adapter
        needs = [need for plugin in plugins for need in plugin.needs]
        self.layers = {
            need.layer
            for need in needs
            if isinstance(need, LayerKeys) or (isinstance(need, (QueryRow, QueryRows)) and need.when == "inside")
        }
        self.attended = {site.layer for plugin in plugins for site in plugin.sites if isinstance(site, AttentionSite)}
        self.layers |= self.attended
        # what a plugin asks of a layer inside whose attention it acts is used there and then
        self._lasting = {
            need.layer
            for plugin in plugins
            for need in plugin.needs
            if isinstance(need, (QueryRow, QueryRows, LayerKeys)) and AttentionSite(need.layer) not in plugin.sites
        }
        self.inputs = {need.layer for need in needs if isinstance(need, LayerInput)}
        wanted = {need for need in needs if isinstance(need, TowerObservation)}
        if adapter.projector is None:
            # then plugins are shown tokens for features
            wanted.discard(TowerFeatures())
        self._tower = TowerObserver(adapter, wanted) if wanted else None
        if self._tower is not None:
            acts = [site for plugin in plugins for site in plugin.sites if isinstance(site, TowerSite)]
            self._tower.refuse_after(min((site.block + (site.when == "inside") for site in acts), default=None))

    def install(self, current: Any, decide: Callable[[Call, int], Instead | None], undo: Undo) -> None:
        """Put the taps on; `current()` is the running call or None, `decide` what attends in a layer's place."""
        if self.layers:
            attention = {index: self._adapter.layers[index].self_attn for index in sorted(self.layers)}

            def saw(layer: int, query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any]) -> Instead | None:
                call: Call | None = current()
                if call is None or (call.spans is None and not call.later):
                    return None
                scale, softcap, window = (kwargs.get(name) for name in ("scaling", "softcap", "sliding_window"))
                rope, survivors = call.ropes.get(layer), call.present()
                call.tapped[layer] = Tapped(query, key, mask, scale, softcap, window, rope, survivors)
                instead = decide(call, layer) if layer in self.attended and call.spans is not None else None
                if layer not in self._lasting:
                    del call.tapped[layer]
                return instead

            install_tap(attention, saw, undo)
        if self._tower is not None:
            self._tower.install(undo)

    def told(self, kept: Tensor) -> None:
        """Note which patches [P, 1] a plugin of the tower kept."""
        if self._tower is not None:
            self._tower.told(kept)

    def arrive(self, call: Call, embeds: Tensor) -> None:
        """Connect the visual tokens of a prompt, as they enter the decoder [B, S, D], with the tower's runs."""
        if self._tower is not None and call.original is not None:
            started = time.perf_counter()
            call.tower = self._tower.arrive(call.original, embeds)
            call.deciding += self._tower.seconds() + time.perf_counter() - started

    def at(self, call: Call, layer: int, now: Callable[[], Input]) -> ObservedCall:
        """What can be seen at the input of `layer`; `now()` brings that input to the survivors."""
        return ObservedCall(self._adapter, call, layer, now, self._tower)


@dataclass(frozen=True)
class ObservedCall:
    """The observations of one call at one site."""

    adapter: Adapter
    call: Call
    layer: int
    now: Callable[[], Input]
    towers: TowerObserver | None

    def query_logits(self, wanted: QueryRow) -> tuple[Tensor, Tensor]:
        """See `View.query_logits`."""
        source, survivors = self._source(wanted)
        logits = row_logits(source, survivors.physical(self.call.query_slot()[:, None]))[:, :, 0]
        logits = self.adapter.ranks.all_queries(logits)
        return logits, self._columns(survivors, logits.shape[-1])

    def attention(self, wanted: QueryRow | QueryRows, rows: Rows, reduce: Literal["sum", "max"]) -> Attended:
        """See `View.attention`."""
        source, survivors = self._source(wanted)
        # slots of columns that do not exist may name a token that is gone
        slots = survivors.physical(torch.where(rows.valid, rows.slot, survivors.index[:, -1:]))
        weight, looks = reduce_rows(source, slots, rows.valid, reduce)
        weight = self.adapter.ranks.all_queries(weight)
        return Attended(weight, looks, self._columns(survivors, weight.shape[-1]), survivors)

    def layer_input(self, wanted: LayerInput, rows: Rows) -> Tensor:
        """See `View.layer_input`."""
        if wanted.layer not in self.call.inputs:
            raise _not_seen(f"the input of layer {wanted.layer}")
        hidden, survivors = self.call.inputs[wanted.layer]
        at = survivors.physical(torch.where(rows.valid, rows.slot, survivors.index[:, -1:]))
        return compact([hidden], at)[0]

    def _source(self, wanted: QueryRow | QueryRows) -> tuple[Source, TokenMap]:
        layer = self.adapter.layers[wanted.layer]
        if wanted.when == "before" and wanted.layer == self.layer:
            survivors, now = self.call.present(), self.now()
            return projected_source(layer, now.hidden, now.rope, now.mask, now.past_key, rope=wanted.rope), survivors
        seen = self._tapped(wanted.layer)
        return tapped_source(seen, layer.self_attn, rope=wanted.rope), seen.survivors

    def layer_keys(self, wanted: LayerKeys, rows: Rows | None) -> Tensor:
        """See `View.layer_keys`."""
        seen = self._tapped(wanted.layer)
        keys = tapped_keys(seen, self.adapter.layers[wanted.layer].self_attn, rope=wanted.rope)
        if rows is None:
            columns = self._columns(seen.survivors, keys.shape[2])
        else:
            at = torch.where(rows.valid, rows.slot, seen.survivors.index[:, -1:])
            columns = seen.survivors.physical(at) + keys.shape[2] - seen.survivors.size
        columns = columns[:, None, :, None]
        found = keys.gather(2, columns.expand(-1, keys.shape[1], -1, keys.shape[3]))
        return self.adapter.ranks.all_keys(found).transpose(1, 2)

    def tower(self, wanted: TowerObservation) -> Tensor:
        """See `View.tower`, `View.tower_keys` and `View.tower_features`; [B, V, C]."""
        if self.towers is None or self.call.tower is None:
            raise _not_seen(f"{wanted} of the tower")
        assert self.call.original is not None and self.call.spans is not None
        full = self.towers.candidates(wanted, self.call.tower).to(self.call.device)
        if self.call.spans is self.call.original:
            return full
        # candidates that are left, found by their slot
        wide = (-1, -1, full.shape[2])
        by_slot = full.new_zeros(full.shape[0], self.call.length, full.shape[2])
        by_slot.scatter_add_(1, self.call.original.slot[:, :, None].expand(wide), full)
        left = by_slot.gather(1, self.call.spans.slot[:, :, None].expand(wide))
        return torch.where(self.call.spans.valid[:, :, None], left, 0.0)

    def project(self, features: Tensor) -> Tensor:
        """See `View.project`."""
        assert self.adapter.projector is not None
        made: Tensor = self.adapter.projector(features)
        return made

    def _columns(self, survivors: TokenMap, keys: int) -> Tensor:
        assert self.call.spans is not None
        return survivors.physical(self.call.spans.slot) + keys - survivors.size

    def _tapped(self, layer: int) -> Tapped:
        seen = self.call.tapped.get(layer)
        if seen is None:
            raise _not_seen(f"attention of layer {layer}")
        return seen


def _not_seen(what: str) -> StateError:
    return StateError(
        explain(
            f"{what} was not observed before it was asked for",
            "observations a plugin names in its needs, of earlier layers",
            "Add the observation to the plugin's needs",
        )
    )
