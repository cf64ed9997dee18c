"""The laws of sparse prefill: pairs of tokens are left out, nobody is dropped, and what is computed is reported."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tests.blocks_oracle import blocks_by_pair
from tests.contracts import kit
from tests.contracts.checks_modes import next_turn, words
from tests.oracle import decoder_layers, masked_logits
from tests.tiny import row, tiny_inputs, visual_mask
from tests.tiny.batch import TYPE_IDS
from vlm_eff import attach
from vlm_eff.core.plugin import Plugin
from vlm_eff.models import attend_blocks
from vlm_eff.models.cost import layer_flops


def nobody_is_dropped(family: str, plugin: Plugin) -> None:
    """Every token is there in every layer, attends, and is stored; decode steps see them all."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0))
    with attach(model, plugin) as handle:
        kit.forward(model, inputs, use_cache=True)
    length, last = inputs["input_ids"].shape[1], handle.stats().last
    assert last is not None
    assert all(bool(mask.all()) for mask in kit.survivors(handle, inputs))
    assert kit.bypassed(handle, inputs) == {}
    assert last.kv_bytes == last.kv_bytes_bare
    assert set(last.attended_per_layer) == {length}
    assert last.stages == ()
    assert last.n_eq == last.visual_tokens


def a_row_does_not_depend_on_its_batch(family: str, plugin: Plugin, pad: str = "left") -> None:
    """Blocks lie where they lie without padding, so that a batch equals its rows, whatever is chosen."""
    rows = (1, 2, 0)
    model, inputs = kit.model_of(family), tiny_inputs(family, rows, pad=pad)  # type: ignore[arg-type]
    batch, real = kit.attached(model, inputs, plugin), kit.real(inputs)
    for index, images in enumerate(rows):
        alone = row(inputs, index)
        single = kit.attached(model, alone, plugin) if images else None
        want = kit.bare(model, alone) if single is None else single.logits
        kit.same(batch.logits[index][real[index]], want[0])
        if images:
            kit.differs(want, kit.bare(model, alone))


def turns_attend_by_pair(family: str, plugin: Plugin) -> None:
    """A second turn with a picture counts what the first one left as text, and a decode step sees everything."""
    model, first = kit.model_of(family), tiny_inputs(family, (1, 2))
    later = tiny_inputs(family, (1, 1), text=(6, 6), seed=8)
    length = first["input_ids"].shape[1]
    turn = next_turn(model, first, family, length, later)
    step = next_turn(model, turn, family, length + later["input_ids"].shape[1], {"input_ids": words(2, 1, 4)})

    def talk() -> list[Tensor]:
        made, cache = [], None
        for inputs in (first, turn, step):
            out = kit.forward(model, inputs, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            made.append(out.logits)
        return made

    with attach(model, plugin):
        logits = talk()
    with blocks_by_pair(model, plugin, first, later):
        wanted = talk()
    for got, want, real in zip(logits, wanted, (kit.real(first), kit.real(later), None), strict=True):
        kit.same(got if real is None else got[real], want if real is None else want[real])
    with blocks_by_pair(model, plugin, first):
        kit.differs(logits[1][kit.real(later)], talk()[1][kit.real(later)])


def blocks_among_survivors(family: str, drops: Plugin, plugin: Plugin) -> None:
    """Over what another plugin left, the pattern sees a shorter prompt: columns hidden, and a mask over the others."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0))
    run = kit.attached(model, inputs, drops, plugin)
    left = kit.survivors(run.handle, inputs)[-1] & kit.real(inputs)
    with blocks_by_pair(model, plugin, inputs):
        kit.same(run.logits[left], masked_logits(model, inputs, kit.dropped(run.handle, inputs))[left])
    kit.differs(run.logits[left], masked_logits(model, inputs, kit.dropped(run.handle, inputs))[left])


def candidates_attend_in_full(family: str, plugin: Plugin) -> None:
    """Candidates behind an assisted prefill see everything, and the prompt is computed as without them."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1,))
    length = inputs["input_ids"].shape[1]
    extra = next_turn(model, inputs, family, length, {"input_ids": words(1, 3, 9)})
    longer: dict[str, Any] = dict(inputs) | {"attention_mask": extra["attention_mask"]}
    for name in ("input_ids", TYPE_IDS.get(family, "input_ids")):
        longer[name] = torch.cat([inputs[name], extra[name]], 1)

    def ask() -> Tensor:
        # as assisted decoding calls it: with a cache, for the logits behind the prompt and behind every candidate
        cache = DynamicCache(config=model.config.get_text_config())
        return kit.bare(model, longer, past_key_values=cache, logits_to_keep=4)

    with attach(model, plugin):
        got = ask()
    with blocks_by_pair(model, plugin, inputs, waiting=3):
        kit.same(got, ask())
    kit.same(got[:, 0], kit.attached(model, inputs, plugin).logits[:, -1])
    kit.differs(got, ask())


def what_is_computed_is_reported(family: str, plugin: Any, computed: bool) -> None:
    """With blocks of one pair the report names the pairs; FLOPs fall by them where a kernel spares the others."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1,))
    length = inputs["input_ids"].shape[1]
    before, attend_blocks.chosen = attend_blocks.chosen, lambda *_, **__: "triton" if computed else "torch"
    try:
        last = kit.attached(model, inputs, plugin).handle.stats().last
    finally:
        attend_blocks.chosen = before
    assert last is not None
    text, pattern = (~visual_mask(inputs)[0]).tolist(), plugin.pattern
    seen = sum(
        text[i] or text[j] or j < pattern.sinks or i - j < pattern.window for i in range(length) for j in range(i + 1)
    )
    share = seen / (length * (length + 1) / 2)
    realised = share if computed else 1.0
    for layer in range(kit.LAYERS):
        acts = layer in plugin.layers
        assert abs(last.listed_per_layer[layer] - (share if acts else 1.0)) < 1e-6
        assert abs(last.computed_per_layer[layer] - (realised if acts else 1.0)) < 1e-6
    layers = decoder_layers(model)
    want = sum(
        layer_flops(layer, length, length, length * (realised if index in plugin.layers else 1.0))
        for index, layer in enumerate(layers)
    )
    assert abs(last.flops - want) <= 1e-6 * want
    assert (last.flops < last.flops_bare) == computed
    assert "pairs asked" in str(kit.attached(model, inputs, plugin).handle.stats())
