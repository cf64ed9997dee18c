"""How layers and heads share a budget: exact totals, bounds, mixtures, and each rule from eager attention."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts import kit, kv_kit
from tests.kvcache.open_cache import entries_behind_prompt
from tests.oracle import attention_rows
from tests.tiny import row, tiny_inputs, visual_mask
from vlm_eff import attach
from vlm_eff.core.cache import CacheRows
from vlm_eff.importance.allocate import apportion
from vlm_eff.kvcache import adakv, pyramidkv, vl_cache
from vlm_eff.kvcache.budget import CacheBudget, Evenly, Spread, layer_counts
from vlm_eff.kvcache.policy import CachePolicy
from vlm_eff.kvcache.scores import Accumulated
from vlm_eff.kvcache.spreads import BestOfHeads, CommonMass, CrossEntropy, Hybrid, Pyramid, Sparsity, mixed

RULES: dict[str, Spread] = {
    "pyramid": Pyramid(3),
    "sparsity": Sparsity(),
    "cross entropy": CrossEntropy(CacheRows("all", None)),
    "common mass": CommonMass(),
}
BUDGETS = {
    "ratio": CacheBudget(ratio=0.37),
    "count": CacheBudget(count=7),
    "bytes": CacheBudget(bytes=60 * 256 + 9),
    "little": CacheBudget(bytes=13 * 256),
    "much": CacheBudget(ratio=0.97),
}


def prompt(family: str, spread: Spread, inputs: Any = None) -> Any:
    """The view behind a prompt, and the scores of its layers."""
    model = kit.model_of(family)
    policy = CachePolicy("h2o", Accumulated(), CacheBudget(ratio=0.5), spread)
    with attach(model, policy) as handle:
        given = dict(tiny_inputs(family, (1, 2, 0)) if inputs is None else inputs)
        cache = kit.forward(model, given, use_cache=True).past_key_values
        entries = entries_behind_prompt(handle, cache)
    view = SimpleNamespace(layers=tuple(entries), entries=entries.__getitem__)
    return view, lambda layer: policy.score(entries[layer])


def weights(spread: Spread, view: Any, scores: Any, totals: Tensor) -> Tensor:
    made = spread.weights(view, scores, totals)
    assert made is not None
    return made.cpu()


@pytest.mark.parametrize("share", [1.0, 0.2])
@pytest.mark.parametrize("name", RULES)
def test_every_total_is_met_within_bounds(name: str, share: float) -> None:
    spread = mixed(RULES[name], share)
    view, scores = prompt("llava", spread)
    seen = view.entries(0).seen
    uneven = False
    for budget in BUDGETS.values():
        counts = layer_counts(budget, spread, view, scores, least=3)
        wanted = torch.tensor([budget.total(count, kit.LAYERS, 256) for count in seen.tolist()])
        assert torch.equal(counts.sum(1), wanted)
        low = torch.minimum(seen.clamp(max=3), wanted // kit.LAYERS)
        assert bool((counts >= low[:, None]).all() and (counts <= seen[:, None]).all())
        uneven |= not torch.equal(counts, layer_counts(budget, Evenly(), view, scores, least=3))
    assert uneven, "layers share evenly"


def test_no_layer_starves_below_what_is_protected_as_far_as_the_total_reaches() -> None:
    view, scores = prompt("llava", Evenly())
    first = torch.tensor([[1.0, *[0.0] * (kit.LAYERS - 1)]]).expand(3, -1)
    greedy: Any = SimpleNamespace(weights=lambda *_: first)
    counts = layer_counts(CacheBudget(count=5), greedy, view, scores, least=3)
    seen = view.entries(0).seen
    assert counts[:, 0].tolist() == [min(15, int(one)) for one in seen]
    assert bool((counts[:, 1:] >= 3).all())
    assert counts.sum(1).tolist() == [5 * kit.LAYERS] * 3
    assert layer_counts(CacheBudget(count=2), greedy, view, scores, least=3).tolist() == [[2] * kit.LAYERS] * 3


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=list(BUDGETS))
def test_equal_layers_are_what_equal_weights_make(budget: CacheBudget) -> None:
    view, scores = prompt("llava", Evenly())
    seen = view.entries(0).seen
    totals = torch.tensor([budget.total(count, kit.LAYERS, 256) for count in seen.tolist()])
    wanted = apportion(torch.ones(3, kit.LAYERS, dtype=torch.float64), totals, 0, seen[:, None])
    assert torch.equal(layer_counts(budget, Evenly(), view, scores, least=3), wanted)


@pytest.mark.parametrize("name", RULES)
def test_a_row_shares_as_it_does_alone(name: str) -> None:
    inputs = tiny_inputs("qwen3_vl", (1, 2, 0))
    view, scores = prompt("qwen3_vl", RULES[name], inputs)
    together = layer_counts(BUDGETS["ratio"], RULES[name], view, scores)
    for index in range(3):
        view, scores = prompt("qwen3_vl", RULES[name], row(inputs, index))
        assert torch.equal(layer_counts(BUDGETS["ratio"], RULES[name], view, scores)[0], together[index])


def test_a_hybrid_is_four_parts_even_and_one_part_adaptive() -> None:
    view, scores = prompt("llava", RULES["sparsity"])
    totals = torch.tensor([60, 60, 30])
    rule = weights(RULES["sparsity"], view, scores, totals)
    made = weights(Hybrid(RULES["sparsity"]), view, scores, totals)
    torch.testing.assert_close(made, 0.8 / kit.LAYERS + 0.2 * rule / rule.sum(1, keepdim=True))
    assert mixed(RULES["sparsity"], 0) == Evenly()
    assert mixed(RULES["sparsity"], 1) is RULES["sparsity"]
    assert mixed(RULES["sparsity"], 0).needs == ()
    assert vl_cache(adaptive_share=0.2).spread == Hybrid(vl_cache().spread)  # type: ignore[attr-defined]


def test_cross_entropy_is_that_of_the_blocks_between_text_and_images() -> None:
    family, inputs = "qwen2_5_vl", tiny_inputs("qwen2_5_vl", (1, 2))
    view, scores = prompt(family, RULES["cross entropy"], inputs)
    made = weights(RULES["cross entropy"], view, scores, torch.tensor([60, 60]))
    signs = torch.zeros(2, kit.LAYERS, dtype=torch.float64)
    for layer in range(kit.LAYERS):
        attention = attention_rows(kit.model_of(family), inputs, layer).double()
        for index in range(2):
            visual = visual_mask(inputs)[index]
            text = kit.real(inputs)[index] & ~visual
            for rows, columns in ((text, visual), (visual, text)):
                block = attention[index][:, rows][:, :, columns]
                signs[index, layer] += torch.special.entr(block).sum((1, 2)).mean() / rows.sum()
    torch.testing.assert_close(made, signs.softmax(1), rtol=1e-4, atol=1e-6)


def test_a_draw_of_rows_is_near_the_cross_entropy_of_all() -> None:
    inputs = tiny_inputs("llava", (2, 1))
    few = CrossEntropy(CacheRows("last", 12, random=24))
    made = []
    for spread in (few, RULES["cross entropy"]):
        view, scores = prompt("llava", spread, inputs)
        made.append(weights(spread, view, scores, torch.tensor([60, 60])))
    assert float((made[0] - made[1]).abs().max()) < 0.05
    assert not torch.equal(made[0], made[1])


def test_the_pyramid_falls_and_a_prompt_that_fits_is_left_alone() -> None:
    view, scores = prompt("llava", RULES["pyramid"])
    seen = view.entries(0).seen
    counts = layer_counts(CacheBudget(count=12), RULES["pyramid"], view, scores)
    for index, row_counts in enumerate(counts.tolist()):
        if seen[index] <= 12:
            assert row_counts == [int(seen[index])] * kit.LAYERS
        else:
            assert all(before >= after for before, after in pairwise(row_counts))
            assert row_counts[0] > row_counts[-1]
    assert bool((seen <= 12).any() and (seen > 12).any())


# ------------------------------------------------------------------ heads


def head_sizes(family: str, plugin: Any, change: Any = None) -> list[list[int]]:
    """Entries of each head after a prompt: one list for each layer and row."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    length = inputs["input_ids"].shape[1]
    if change is None:
        record = kv_kit.compressed(model, inputs, plugin)[-1]
    else:
        with kv_kit.changed_keys(model, change):
            record = kv_kit.compressed(model, inputs, plugin)[-1]
    return [
        [sum(place < length for place in kv_kit.kept(entries, index, head)) for head in range(2)]
        for entries in record
        for index in range(2)
    ]


def test_heads_share_by_what_they_hold() -> None:
    plugin = adakv(keep_count=10, window=4, kernel=1, floor=0.2)
    sizes = head_sizes("internvl", plugin)
    assert {sum(pair) for pair in sizes} == {20}
    assert any(first != second for first, second in sizes)
    even = adakv(keep_count=10, window=4, kernel=1, floor=1.0)
    assert head_sizes("internvl", even) == [[10, 10]] * len(sizes)


def test_equal_heads_share_evenly() -> None:
    def blank(attention: Any, layer: int, states: Tensor, call: Any) -> Tensor:
        return torch.zeros_like(states)

    assert set(map(tuple, head_sizes("llava", adakv(keep_count=9, window=4), blank))) == {(9, 9)}
    assert BestOfHeads() == adakv().heads  # type: ignore[attr-defined]


@pytest.mark.parametrize("adaptive", [True, False])
def test_vl_cache_chooses_for_a_layer_or_for_each_head(adaptive: bool) -> None:
    model, inputs = kit.model_of("qwen3_vl"), tiny_inputs("qwen3_vl", (1, 2))
    record = kv_kit.compressed(model, inputs, vl_cache(keep_ratio=0.4, head_adaptive=adaptive))[-1]
    pairs = [(kv_kit.kept(one, index, 0), kv_kit.kept(one, index, 1)) for one in record for index in range(2)]
    assert all(len(first) == len(second) for first, second in pairs)
    assert any(first != second for first, second in pairs) is adaptive


def test_the_pyramid_and_equal_layers_keep_as_much() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    sizes = []
    for share in (0.0, 0.2, 1.0):
        plugin = pyramidkv(keep_count=11, window=4, adaptive_share=share)
        record = kv_kit.compressed(model, inputs, plugin)[-1]
        sizes.append([len(kv_kit.kept(entries, 0, 0)) - 1 for entries in record])
    assert {sum(one) for one in sizes} == {11 * kit.LAYERS}
    assert sizes[0] == [11] * kit.LAYERS
    assert max(sizes[0]) < max(sizes[1]) < max(sizes[2])
