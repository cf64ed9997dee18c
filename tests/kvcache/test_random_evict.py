"""Random eviction of one modality: the other stays whole, and the budget is of the tokens that may go."""

import math

import pytest

from tests.contracts import kit, kv_kit
from tests.tiny import tiny_inputs, visual_mask
from vlm_eff.core.config import from_dict
from vlm_eff.core.errors import ConfigError
from vlm_eff.kvcache import random_evict


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("only", ["visual", "text"])
def test_the_other_modality_stays_whole(family: str, only: str) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (2, 1))
    record = kv_kit.compressed(model, inputs, random_evict(keep_ratio=0.3, only=only), steps=1)
    visual, length = visual_mask(inputs), inputs["input_ids"].shape[1]
    drawn = set()
    for layer, row, head, kept in kv_kit.each(record[-1], model):
        mine, others = [], []
        for place in kv_kit.real_places(inputs, row):
            (mine if bool(visual[row, place]) == (only == "visual") else others).append(place)
        stay = {place for place in kept if place < length}
        assert set(others) <= stay
        assert len(stay) == len(others) + math.ceil(0.3 * len(mine))
        drawn.add((row, layer, head, tuple(sorted(stay - set(others)))))
    assert len({sets[3] for sets in drawn}) > len(drawn) // 2


def test_a_count_is_of_what_may_go() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    record = kv_kit.compressed(model, inputs, random_evict(keep_count=3, only="visual", recent=2), steps=1)
    visual = visual_mask(inputs)[0]
    for _, _, _, kept in kv_kit.each(record[-1], model):
        assert sum(bool(visual[place]) for place in kept if place < len(visual)) == 3


def test_bytes_of_one_modality_are_refused() -> None:
    with pytest.raises(ConfigError, match="keep_bytes with only='text'"):
        random_evict(keep_bytes=1000, only="text")
    with pytest.raises(ConfigError, match="only"):
        random_evict(only="images")  # type: ignore[arg-type]


def test_everything_kept_changes_nothing_and_it_is_plain_data() -> None:
    plugin = random_evict(keep_ratio=0.5, only="text")
    assert from_dict(plugin.to_dict()) == plugin
    assert random_evict(keep_ratio=1.0, only="text").needs == ()
