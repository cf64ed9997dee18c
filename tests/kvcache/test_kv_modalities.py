"""What the entries of a cache are, and what became of each modality."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts import kit
from tests.contracts.kv_kit import FOUR, Talk
from tests.tiny import TinyInputs, ids, tiny_inputs
from vlm_eff import attach
from vlm_eff.core.errors import StateError
from vlm_eff.kvcache import cross_modal_low_rank, snapkv
from vlm_eff.tokens import fastv

PLUGINS = (snapkv(keep_ratio=0.5, window=4), cross_modal_low_rank(rank=2, rows=5))


def kinds(inputs: TinyInputs, more: int) -> Tensor:
    """What every column of a prompt with `more` words behind it is [B, S]."""
    tokens = inputs["input_ids"]
    made = (tokens == ids.IMAGE).long() + 2 * (tokens == ids.VIDEO).long()
    made = made.masked_fill(~kit.real(inputs), -1)
    return torch.cat([made, torch.zeros(len(made), more, dtype=torch.long)], 1)


@pytest.mark.parametrize("method", PLUGINS, ids=lambda method: method.name)
@pytest.mark.parametrize(("family", "video"), [*((family, False) for family in FOUR), ("qwen2_5_vl", "mixed")])
def test_every_entry_says_what_it_is(family: str, video: Any, method: Any) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2), video=video)
    with attach(model, method) as handle:
        for steps in (0, 2):
            Talk(model, inputs).decode(steps)
            columns = kinds(inputs, steps)
            for layer in range(kit.LAYERS):
                positions, got = handle.kv_positions(layer), handle.kv_modalities(layer)
                assert got.dtype == torch.int8
                for row, known in enumerate(columns):
                    want = torch.where(positions[row] >= 0, known[positions[row].clamp(min=0)], -1)
                    assert torch.equal(got[row].long(), want)


def test_reports_by_modality_add_up() -> None:
    model, inputs = kit.model_of("qwen3_vl"), tiny_inputs("qwen3_vl", (2, 1), video="mixed")
    with attach(model, *PLUGINS) as handle:
        Talk(model, inputs).decode(3)
        modality = [handle.kv_modalities(layer) for layer in range(kit.LAYERS)]
    evicted, packed = handle.stats().compressions
    columns, heads = kinds(inputs, 0), modality[0].shape[1]
    for report in (evicted, packed):
        assert sum(one.bytes_before for one in report.modalities) == pytest.approx(report.bytes_before, abs=3)
        assert sum(one.bytes_after for one in report.modalities) == pytest.approx(report.bytes_after, abs=3)
    assert [one.modality for one in evicted.modalities] == ["text", "image", "video"]
    for place, (one, later) in enumerate(zip(evicted.modalities, packed.modalities, strict=True)):
        assert one.before == float((columns == place).sum()) / len(columns)
        assert later.before == later.after == one.after
        # three words have been said since
        now = sum(float((made == place).sum()) for made in modality) / (kit.LAYERS * heads * len(columns))
        assert now == pytest.approx(later.after + (3 if place == 0 else 0))
    image = packed.modalities[1]
    assert image.bytes_after < 0.7 * image.bytes_before
    written = json.loads(json.dumps(handle.stats().to_dict()))
    assert written["compressions"][0]["modalities"][1]["modality"] == "image"
    assert "    image " in str(handle.stats())


def test_only_plugins_of_the_cache_know() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    with attach(model, fastv()) as handle:
        kit.forward(model, inputs, use_cache=True)
        with pytest.raises(StateError):
            handle.kv_modalities(0)
