"""LOOK-M: text before images, the order inside each, and merges that are what they are said to be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from tests.contracts import kit
from tests.contracts.checks_modes import next_turn, words
from tests.kvcache.seen import eager, planned
from tests.tiny import row, tiny_inputs, visual_mask
from vlm_eff import attach
from vlm_eff.core.cache import EXACT
from vlm_eff.core.errors import ConfigError
from vlm_eff.kvcache import look_m, random_evict
from vlm_eff.kvcache.merge import MergeInto
from vlm_eff.models.kv.view import Entries

MIXINGS = ("pivotal", "average", "weighted", "counted")


def ranked(mass: Tensor, there: Tensor, visual: Tensor) -> list[int]:
    """Positions in the order in which they stay: text by its mass, then images by theirs."""
    places = there.nonzero()[:, 0].tolist()
    return sorted(places, key=lambda place: (bool(visual[place]), -float(mass[place]), place))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("more", [-3, 0, 4], ids=["less than the text", "just the text", "text and some images"])
def test_text_stays_as_far_as_the_budget_goes_and_images_keep_their_order(family: str, more: int) -> None:
    inputs = tiny_inputs(family, (1,), text=(9, 9))
    model, weights = eager(family, inputs)
    visual = visual_mask(inputs)[0]
    count = int((~visual).sum()) + more
    seen = planned(model, inputs, look_m(keep_count=count, recent_share=0.0, merge=None))
    for layer, stored in seen.stored.items():
        mass = weights[layer][0].double().sum(1).view(2, -1, len(visual)).sum(1)
        for head in range(2):
            kept = set((stored.form[0, head] == EXACT).nonzero()[:, 0].tolist())
            assert kept == set(ranked(mass[head], kit.real(inputs)[0], visual)[:count])


def test_half_of_the_budget_is_the_last_tokens() -> None:
    inputs = tiny_inputs("llava", (2, 1))
    seen = planned(kit.model_of("llava"), inputs, look_m(keep_count=8, merge=None))
    for stored in seen.stored.values():
        assert bool((stored.form[:, :, -4:] == EXACT).all())
        assert ((stored.form == EXACT).sum(2) == 8).all()


def targets(entries: Entries, kept: Tensor, idle: Tensor, apart: bool) -> dict[int, list[int]]:
    """Which evicted columns go into each kept one, of row 0 head 0, pair by pair in float64."""
    keys = torch.nn.functional.normalize(entries.key[0, 0].double(), dim=-1)
    modality = entries.modality[0, 0]
    goals = [j for j in kept.nonzero()[:, 0].tolist() if not idle[j]]
    made: dict[int, list[int]] = {}
    for gone in (entries.present[0, 0] & ~kept & (modality > 0)).nonzero()[:, 0].tolist():
        allowed = [j for j in goals if not apart or modality[j] == modality[gone]]
        if allowed:
            made.setdefault(max(allowed, key=lambda j: float(keys[gone] @ keys[j])), []).append(gone)
    return made


@pytest.mark.parametrize("mixing", MIXINGS)
def test_merged_entries_are_the_formula(mixing: Any) -> None:
    inputs = tiny_inputs("llava", (2,))
    model, apart = kit.model_of("llava"), mixing == "counted"
    plugin = look_m(keep_ratio=0.6, recent_share=0.3, merge=mixing)
    seen = planned(model, inputs, plugin)
    length, merged = inputs["input_ids"].shape[1], 0
    recent = torch.arange(length) >= length - -(-3 * -(-6 * length // 10) // 10)
    idle = (recent | (torch.arange(length) < 4)) if apart else torch.zeros(length, dtype=torch.bool)
    for layer, stored in seen.stored.items():
        entries, kept = seen.entries[layer], stored.form[0, 0] == EXACT
        into = targets(entries, kept, idle, apart)
        for contents, made in ((entries.key, stored.key), (entries.value, stored.value)):
            old, want = contents[0, 0].double(), contents[0, 0].double().clone()
            for goal, gone in into.items():
                cosine = torch.cosine_similarity(entries.key[0, 0, goal].double(), entries.key[0, 0, gone].double(), -1)
                added = {
                    "pivotal": (old[gone] + old[goal]) / 2,
                    "weighted": cosine[:, None] * old[gone],
                }.get(mixing, old[gone])
                want[goal] = (old[goal] + added.sum(0)) / (len(gone) + 1)
            torch.testing.assert_close(made[0, 0, kept].double(), want[kept], atol=1e-5, rtol=1e-5)
        merged += sum(map(len, into.values()))
        if apart:
            counts = torch.tensor([1 + len(into.get(j, ())) for j in range(length)])
            assert torch.equal(stored.weight[0, 0, kept], counts[kept].float())
        else:
            assert stored.weight is None
    assert merged > 20


def test_counted_merges_stay_in_their_modality_and_out_of_sinks_and_window() -> None:
    inputs = tiny_inputs("qwen2_5_vl", (2, 1), text=(6, 9))
    for plugin, spared in ((look_m(keep_ratio=0.6), True), (look_m(keep_ratio=0.6, merge="pivotal"), False)):
        seen, touched = planned(kit.model_of("qwen2_5_vl"), inputs, plugin), False
        for layer, stored in seen.stored.items():
            entries = seen.entries[layer]
            changed = (stored.key != entries.key).any(-1) & (stored.form == EXACT)
            late = entries.ordinal >= entries.seen[:, None, None] - 5
            off = entries.present & ((entries.ordinal < 4) | late | (entries.modality == 0))
            touched = touched or bool((changed & off).any())
            assert bool((changed & ~off).any())
            assert not (changed & ~entries.present).any()
        assert touched is not spared


def steps(model: Any, inputs: Any, family: str, planted: bool, plugin: Any = None) -> Tensor:
    """Logits of three decode steps [B, 3, V] on a cache in which all images of a row are one entry many times over."""

    def run() -> Tensor:
        cache = DynamicCache(config=model.config.get_text_config())
        kit.forward(model, inputs, past_key_values=cache, use_cache=True)
        visual = visual_mask(inputs)
        for layer in cache.layers if planted else ():
            for index, place in enumerate(visual):
                first = int(place.nonzero()[5])
                for contents in (layer.keys, layer.values):
                    contents[index, :, place] = contents[index, :, first : first + 1].clone()
        made, asked = [], {"input_ids": words(len(visual), 3, 4)}
        full = next_turn(model, inputs, family, visual.shape[1], asked)
        for step in range(3):
            past = visual.shape[1] + step
            one = {name: value[..., step : step + 1] for name, value in full.items() if name != "attention_mask"}
            one["attention_mask"] = full["attention_mask"][:, : past + 1]
            made.append(kit.forward(model, one, past_key_values=cache, use_cache=True).logits)
        return torch.cat(made, 1)

    if plugin is None:
        return run()
    with attach(model, plugin):
        return run()


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_merging_equal_entries_is_exact_with_their_number_and_wrong_without(family: str, attn: str) -> None:
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (1, 2))
    counted, lost, pivotal = (
        # no text goes, and images are left in front of the window
        look_m(keep_ratio=0.75, recent_share=0.2, merge=merge)
        for merge in ("counted", None, "pivotal")
    )
    want = steps(model, inputs, family, True)
    kit.same(steps(model, inputs, family, True, counted), want)
    kit.differs(steps(model, inputs, family, True, lost), want)
    kit.differs(steps(model, inputs, family, True, pivotal), want)
    kit.differs(steps(model, inputs, family, False, counted), steps(model, inputs, family, False))


def test_rows_do_not_depend_on_their_neighbours() -> None:
    inputs, model = tiny_inputs("llava", (2, 1)), kit.model_of("llava")
    both = planned(model, inputs, look_m(keep_ratio=0.5))
    for index in range(2):
        alone = planned(model, row(inputs, index), look_m(keep_ratio=0.5))
        there = kit.real(inputs)[index]
        for layer, stored in both.stored.items():
            assert torch.equal(stored.form[index][:, there], alone.stored[layer].form[0])
            # keys are turned by how far the padding moves a row; cosines and values are not
            kit.same(stored.value[index][:, there], alone.stored[layer].value[0], 1e-4)
            assert torch.equal(stored.weight[index][:, there], alone.stored[layer].weight[0])


def test_a_second_merge_counts_what_the_first_one_took_in() -> None:
    """Multiplicities add up over two turns, and any policy can merge."""
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (2,))
    plugin = look_m(keep_ratio=0.7, recent_share=0.2)
    length = inputs["input_ids"].shape[1]
    with attach(model, plugin) as handle:
        cache = DynamicCache(config=model.config.get_text_config())
        kit.forward(model, inputs, past_key_values=cache, use_cache=True)
        for count, past in ((1, length), (6, length + 1), (1, length + 7)):
            more = next_turn(model, inputs, "llava", past, {"input_ids": words(1, count, 3)})
            more["attention_mask"] = torch.ones(1, past + count, dtype=torch.long)
            kit.forward(model, more, past_key_values=cache, use_cache=True)
            if count == 1:
                stands = [layer.weights().sum(2) for layer in cache.layers]
                # every token is there, merged or not, but for text that was evicted
                assert all(float(total.max()) <= past + 1 for total in stands)
        assert all(float(total.min()) > length for total in stands)
        assert max(float(layer.weights().max()) for layer in cache.layers) > 2
        assert len(handle.stats().compressions) == 2
    policy = random_evict(keep_ratio=0.5)
    merging = type(policy)("random_evict", policy.score, policy.budget, treat=MergeInto("counted", visual=False))
    run = kit.attached_generate(model, inputs, merging)
    kit.differs(run.logits, kit.attached_generate(model, inputs, policy).logits)


@pytest.mark.parametrize(
    "wrong", [{"merge": "mass"}, {"recent_share": 1.5}, {"recent_share": "half"}, {"keep_count": 0}]
)
def test_arguments_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        look_m(**wrong)
    with pytest.raises(ConfigError):
        MergeInto(sinks=-1)
