"""Which entries stay: exact budgets, protected places, unchanged contents, planted needles, ties."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tests.contracts import kit, kv_kit
from tests.contracts.kv_definitions import Kept
from tests.contracts.kv_kit import Talk
from tests.contracts.kv_promises import Promise
from tests.kv_oracle import recording
from tests.tiny import tiny_inputs, visual_mask
from vlm_eff import attach
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.resources import Resource


def kv_budget_is_met(family: str, plugin: Plugin, promise: Promise, rows: tuple[int, ...] = (1, 2, 0)) -> None:
    """P2: every row keeps its budget to the entry, over all layers and heads, and in each where the method says so."""
    assert promise.budget is not None
    model, inputs = kit.model_of(family), tiny_inputs(family, rows)
    record, length = kv_kit.compressed(model, inputs, plugin), inputs["input_ids"].shape[1]
    less = False
    for index in range(len(rows)):
        real = len(kv_kit.real_places(inputs, index))
        counts = {
            (layer, head): sum(place < length for place in kept)
            for layer, row, head, kept in kv_kit.each(record[-1], model)
            if row == index
        }
        budget = promise.budget(real)
        less |= budget < real
        assert sum(counts.values()) == budget * len(counts), f"row {index}: {counts}, {budget} each are asked for"
        if promise.even:
            assert set(counts.values()) == {budget}
        for layer, row, head, kept in kv_kit.each(record[-1], model):
            assert row != index or kept[counts[layer, head] :] == list(range(length, length + 1))
    assert less, "nothing has to be evicted"


def kv_protected_entries_stay(family: str, plugin: Plugin, promise: Promise) -> None:
    """P3: padding is never kept, the first and last entries that a method protects always are, none is kept twice."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0))
    record, length = kv_kit.compressed(model, inputs, plugin), inputs["input_ids"].shape[1]
    evicted = False
    for layer, index, _, kept in kv_kit.each(record[-1], model):
        real = kv_kit.real_places(inputs, index)
        old = [place for place in kept if place < length]
        assert set(old) <= set(real), f"layer {layer}, row {index} keeps padding"
        assert len(set(kept)) == len(kept), f"layer {layer}, row {index} keeps an entry twice"
        protected = set(real[: promise.first]) | set(real[len(real) - promise.last :])
        assert protected <= set(kept), f"layer {layer}, row {index} lost protected entries"
        evicted |= len(old) < len(real)
    assert evicted or Resource.CACHE_ENTRIES not in plugin.writes, "nothing was evicted"


def kv_keys_keep_their_phase(family: str, plugin: Plugin) -> None:
    """P5: kept keys and values are those of the full cache at the same position; positions go on from the prompt."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    full = Talk(model, inputs).decode(1)
    deltas = getattr(model.model, "rope_deltas", None)
    with attach(model, plugin) as handle, recording(model, handle, contents=True) as record:
        talk = Talk(model, inputs).decode(1)
    assert {layer.get_seq_length() for layer in talk.cache.layers} == {talk.length}
    assert deltas is None or torch.equal(model.model.rope_deltas, deltas)
    for layer, entries in enumerate(record[-1]):
        contents = entries.contents
        assert contents is not None
        assert contents[2] is None or not contents[2][entries.positions >= 0].any()
        there = (entries.positions >= 0) & (entries.positions < talk.length - 1)
        for index, head in torch.cartesian_prod(*(torch.arange(size) for size in there.shape[:2])).tolist():
            places = entries.positions[index, head][there[index, head]].long()
            for got, want in zip(
                contents[:2], (full.cache.layers[layer].keys, full.cache.layers[layer].values), strict=True
            ):
                assert torch.equal(got[index, head][there[index, head]], want[index, head, places])


def kv_set_is_the_definition(family: str, plugin: Plugin, definition: Kept) -> None:
    """P6: the entries kept are those of the method's definition, from eager attention weights in float64."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0))
    record, length = kv_kit.compressed(model, inputs, plugin), inputs["input_ids"].shape[1]
    wanted = definition(model, inputs)
    for layer, index, head, kept in kv_kit.each(record[-1], model):
        old = [place for place in kept if place < length]
        assert old == wanted[layer, index, head], f"layer {layer}, row {index}, head {head}"


def kv_needle_is_kept(family: str, plugin: Plugin, window: int = 4) -> None:
    """P7: an entry that the last `window` queries of each head look for is kept, wherever it stands."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 1))
    for share in (0.3, 0.6):
        places = [visual_mask(inputs)[index].nonzero()[:, 0] for index in range(2)]
        needle = torch.stack([found[int(len(found) * share)] for found in places])
        with kv_kit.changed_keys(model, Planted(needle, window)):
            record = kv_kit.compressed(model, inputs, plugin)
        for layer, index, head, kept in kv_kit.each(record[-1], model):
            assert int(needle[index]) in kept, f"layer {layer}, row {index}, head {head} lost the needle"
            assert len(kept) < inputs["input_ids"].shape[1], "nothing was evicted"


class Planted:
    """Makes the key at `needle` [B] such that the last `window` queries of its group look at it and at little else."""

    def __init__(self, needle: Tensor, window: int) -> None:
        self.needle, self.window = needle, window

    def __call__(self, attention: Any, layer: int, keys: Tensor, call: Any) -> Tensor:
        if keys.shape[1] <= int(self.needle.max()):
            return keys
        hidden, (cos, sin) = call["hidden_states"], call["position_embeddings"]
        rows, length, width = *keys.shape[:2], attention.head_dim
        cos, sin = (table.expand(rows, -1, -1)[:, None] for table in (cos, sin))
        norm = getattr(attention, "q_norm", lambda states: states)
        query = norm(attention.q_proj(hidden).view(rows, length, -1, width)).transpose(1, 2)
        query = _turned(query, cos, sin)[:, :, -self.window :]
        query = query.reshape(rows, -1, attention.num_key_value_groups * self.window, width)
        aim = torch.nn.functional.normalize(query, dim=-1).mean(2, keepdim=True)
        at = self.needle[:, None, None, None].expand(-1, 1, 1, width)
        key = _turned(aim, cos.gather(2, at), -sin.gather(2, at))[:, :, 0]
        size = (
            1.0
            if hasattr(attention, "k_norm")
            else 40.0 * width**0.5 / (query.norm(dim=-1).mean() * aim.norm(dim=-1).mean())
        )
        made = keys.view(rows, length, -1, width).clone()
        made[torch.arange(rows), self.needle] = key * size
        return made.view_as(keys)


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, -1)
    return heads * cos + torch.cat([-second, first], -1) * sin


def kv_ties_go_to_the_lower_index(family: str, plugin: Plugin) -> None:
    """P13: where all scores are equal the lower positions stay, beside a protected end; every run chooses the same."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))

    def blank(attention: Any, layer: int, states: Tensor, call: Any) -> Tensor:
        return torch.zeros_like(states)

    with kv_kit.changed_keys(model, blank), kv_kit.changed_values(model, blank):
        record, again = (kv_kit.compressed(model, inputs, plugin)[-1] for _ in range(2))
    assert list(kv_kit.each(record, model)) == list(kv_kit.each(again, model))
    for layer, index, head, kept in kv_kit.each(record, model):
        real = kv_kit.real_places(inputs, index)
        there = [place in set(kept) for place in real]
        gaps = sum(before and not after for before, after in pairwise(there))
        assert there[0] and gaps == 1, f"layer {layer}, row {index}, head {head}: {there}"
