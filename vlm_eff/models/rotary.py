"""Rotary tables of what is left of a call."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vlm_eff.kernels.compact import compact
from vlm_eff.models.adapter import Adapter
from vlm_eff.models.call import Call
from vlm_eff.models.layer_call import LayerCall
from vlm_eff.models.slots import Slots


def tables_of(adapter: Adapter, call: Call, index: int, now: LayerCall, hidden: Tensor, slots: Slots) -> Any:
    """Rotary tables of the survivors at layer `index`; shared by all layers that were given the same tables.

    hidden: [B, N, D] says dtype and device; slots: what the layer's cache stores, with the shift of its positions
    """
    tables, survivors = now.rope, call.survivors
    positions, position_ids = None, now.kwargs.get("position_ids")
    if call.reindexed is not None:
        table, present = call.reindexed, call.present()
        positions = call.shared("renumbered", (table, present), lambda: present.gather(table))
    elif slots.shift is not None and isinstance(position_ids, Tensor):
        shift = slots.shift
        positions = call.shared("shifted", (position_ids, shift), lambda: position_ids - shift[:, None])
    if positions is not None and tables is not None:
        return call.shared("rope", (tables[0], positions), lambda: adapter.rotary(index, hidden, positions))
    if survivors is None or tables is None:
        return tables
    return call.shared("rope", (tables[0], survivors), lambda: tuple(compact(list(tables), survivors.index)))
