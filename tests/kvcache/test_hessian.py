"""Hessian-aware eviction: brute force in float64 from eager attention, and actual deletions in the real model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts import kit
from tests.kv_oracle import everything, replaying
from tests.kvcache.seen import eager, heads_of, planned, text_rows
from tests.oracle import decoder_layers
from tests.tiny import row, tiny_inputs
from vlm_eff.core.cache import CacheRows
from vlm_eff.core.errors import ConfigError
from vlm_eff.kvcache import hessian
from vlm_eff.kvcache.deletion import DeletionCost

FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl")
WINDOW, HEADS = 3, 2


def brute(weights: Tensor, values: Tensor, rows: list[int], pairs: Any, maps: Tensor | None = None) -> Tensor:
    """The exact form [Hkv, S] in float64, from attention [H, S, S] and values [Hkv, S, Dh], entry by entry."""
    weights, values = weights.double(), values.double()
    made = torch.zeros(values.shape[:2], dtype=torch.float64)
    for head, weight in enumerate(weights):
        group = head * len(values) // len(weights)
        held = values[group] if maps is None else values[group] @ maps[head].double().T
        for query in rows:
            out = weight[query] @ held
            for entry in range(query + 1):
                a = weight[query, entry]
                if a > 0:
                    change = (a / (1 - a)) ** 2 * (held[entry] - out).square().sum()
                    made[group, entry] += pairs(query, entry) * change
    return made


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.double(), want, atol=float(want.max()) * 1e-5, rtol=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_brute_force_over_eager_attention_agrees(family: str) -> None:
    inputs = tiny_inputs(family, (2, 1))
    model, weights = eager(family, inputs)
    seen = planned(model, inputs, hessian(window=WINDOW))
    score = DeletionCost(rows=CacheRows("text", WINDOW))
    for layer in (0, 3, 5):
        entries = seen.entries[layer]
        got = score(entries)
        for index in range(2):
            rows = text_rows(inputs, index, WINDOW)
            want = brute(weights[layer][index], entries.value[index], rows, lambda *_: 1.0)
            there = kit.real(inputs)[index]
            close(got[index][:, there], want[:, there])
            assert not got[index][:, ~there].any()


def test_the_factor_between_modalities_and_the_metric() -> None:
    inputs = tiny_inputs("llava", (1,))
    model, weights = eager("llava", inputs)
    rule = CacheRows("text", WINDOW)
    entries = planned(model, inputs, hessian(window=WINDOW)).entries[2]
    rows, kinds = text_rows(inputs, 0, WINDOW), entries.modality[0, 0]
    projection = decoder_layers(model)[2].self_attn.o_proj.weight.detach()
    maps = torch.stack(projection.split(entries.value.shape[3], 1))

    def pairs(query: int, entry: int) -> float:
        return 1.0 if kinds[query] == kinds[entry] else 2.5

    even, crossed = DeletionCost(rows=rule)(entries), DeletionCost(cross=2.5, rows=rule)(entries)
    close(crossed[0], brute(weights[2][0], entries.value[0], rows, pairs))
    assert torch.equal(crossed[:, :, kinds == 0], even[:, :, kinds == 0])
    close(crossed[:, :, kinds == 1], even[:, :, kinds == 1].double() * 2.5)
    projected = DeletionCost(metric="output", rows=rule)(entries)
    close(projected[0], brute(weights[2][0], entries.value[0], rows, lambda *_: 1.0, maps))
    kit.differs(projected, even)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_exact_form_is_the_deletion_in_the_model(family: str) -> None:
    """One entry of one layer and head hidden by the full-cache oracle: the layer's output changes by the score."""
    model, inputs, layer = kit.model_of(family), tiny_inputs(family, (1,)), 3
    length, rows = inputs["input_ids"].shape[1], text_rows(inputs, 0, WINDOW)
    entries = planned(model, inputs, hessian(window=WINDOW)).entries[layer]
    score = DeletionCost(rows=CacheRows("text", WINDOW))(entries)
    with heads_of(model, layer) as whole:
        kit.forward(model, inputs, use_cache=True)
    for head, entry in ((0, 2), (1, 5), (0, rows[0] - 1)):
        record = everything(model, 1, HEADS, (length,))
        positions = record[0][layer].positions.clone()
        positions[0, head, entry] = -1
        record[0][layer] = replace(record[0][layer], positions=positions)
        with heads_of(model, layer) as without, replaying(model, record):
            kit.forward(model, inputs, use_cache=True)
        change = (without[0] - whole[0])[0, rows].view(WINDOW, HEADS, -1).double()
        assert not change[:, 1 - head].any(), "the other key head saw it too"
        torch.testing.assert_close(score[0, head, entry].double(), change[:, head].square().sum(), atol=1e-9, rtol=1e-3)


@pytest.mark.parametrize("form", ["exact", "value", "key", "joint"])
def test_forms_differ_and_rows_do_not_depend_on_neighbours(form: Any) -> None:
    inputs = tiny_inputs("qwen2_5_vl", (2, 1))
    model, rule = kit.model_of("qwen2_5_vl"), CacheRows("text", WINDOW)
    score = DeletionCost(form, cross=1.5, centre=form != "exact", metric="output", rows=rule)
    got = score(planned(model, inputs, hessian(window=WINDOW)).entries[4])
    assert got.isfinite().all()
    if form != "exact":
        kit.differs(got, DeletionCost("exact", 1.5, metric="output", rows=rule)(
            planned(model, inputs, hessian(window=WINDOW)).entries[4]
        ))  # fmt: skip
    for index in range(2):
        alone = score(planned(model, row(inputs, index), hessian(window=WINDOW)).entries[4])
        kit.same(got[index : index + 1][:, :, kit.real(inputs)[index]], alone, 1e-4)


def test_an_entry_that_stands_for_three_is_deleted_as_one() -> None:
    inputs = tiny_inputs("llava", (1,))
    entries = planned(kit.model_of("llava"), inputs, hessian(window=WINDOW)).entries[1]
    stands = torch.ones(entries.position.shape)
    stands[:, :, 4] = 3
    heavy = replace(entries, weight=stands)
    rule = CacheRows("text", WINDOW)
    seen = heavy.attention(rule)
    want = torch.zeros(HEADS, dtype=torch.float64)
    for head in range(4):
        for query in range(WINDOW):
            a, held = seen.weight[0, head, query].double(), entries.value[0, head // 2].double()
            rest = a.clone()
            rest[4] = 0
            want[head // 2] += (rest @ held / rest.sum() - a @ held).square().sum()
    close(DeletionCost(rows=rule)(heavy)[0, :, 4], want)
    kit.differs(DeletionCost(rows=rule)(heavy)[0, :, 4], DeletionCost(rows=rule)(entries)[0, :, 4])


@pytest.mark.parametrize(
    "wrong", [{"form": "cross"}, {"cross": -1.0}, {"metric": "hidden"}, {"centre": 2}, {"keep_ratio": 0.0}]
)
def test_arguments_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        hessian(**wrong)
