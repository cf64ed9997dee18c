"""The laws of tokens that pass by a layer's attention and stay in the sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.contracts import kit
from tests.contracts.checks import image_tokens
from tests.contracts.checks_modes import next_turn, words
from tests.observations.spy import Spy
from tests.oracle import bypassed_tokens, decoder_layers
from tests.tiny import tiny_inputs
from vlm_eff import attach
from vlm_eff.core.plugin import Plugin, QueryRows


def only_image_tokens_bypass(family: str, plugin: Plugin) -> None:
    """Text, padding and rows without images always attend; every token is still there and stored."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0))
    with attach(model, plugin) as handle:
        cache = kit.forward(model, inputs, use_cache=True).past_key_values
    candidates, length = image_tokens(family, inputs), inputs["input_ids"].shape[1]
    asked = {site.layer for site in plugin.sites}
    passed = kit.bypassed(handle, inputs)
    assert set(passed) == asked, "every chosen layer lets somebody pass by, and no other one does"
    for layer, mask in passed.items():
        assert not bool((mask & ~candidates).any()), f"layer {layer}: something that is no image token"
    for layer in range(kit.LAYERS):
        for row in handle.attended(layer):
            assert row.tolist() == sorted(set(row.tolist()))
    assert all(bool(mask.all()) for mask in kit.survivors(handle, inputs))
    last = handle.stats().last
    assert last is not None
    assert last.kv_bytes == last.kv_bytes_bare
    assert last.visual_per_layer == (sum(last.visual) / 3,) * kit.LAYERS
    assert last.stages == ()
    stored = [layer.keys.shape[-2] for layer in cache.layers]
    assert all(
        count == length or (count < length and window) for count, window in zip(stored, _slides(model), strict=True)
    )


def _slides(model: Any) -> list[bool]:
    return [getattr(layer.self_attn, "sliding_window", None) is not None for layer in decoder_layers(model)]


def attention_alone_is_saved(family: str, plugin: Plugin) -> None:
    """The report's FLOPs are what torch counts in the two attention products and the linear maps of the layers."""
    model, inputs = kit.model_of(family, "eager"), tiny_inputs(family, (1, 2))

    def measured() -> float:
        names = {id(module): name for name, module in model.named_modules()}
        with FlopCounterMode(display=False, depth=20) as counter:
            kit.forward(model, inputs)
        counts = counter.get_flop_counts()
        layers = [f"{type(model).__name__}.{names[id(layer)]}" for layer in decoder_layers(model)]
        return float(sum(sum(counts[name].values()) for name in layers))

    bare = measured()
    spy: list[int] = []
    look = Spy(QueryRows(0), lambda view: view.probes(plugin.recent, plugin.random, plugin.seed).slot.shape[1], spy, 1)  # type: ignore[attr-defined]
    kit.attached(model, inputs, look)
    seen = spy[0]
    with attach(model, plugin) as handle:
        realised = measured()
        last = handle.stats().last
    assert last is not None
    # the probe rows are products too; the report counts what the model computes, not what choosing costs
    attention, rows = decoder_layers(model)[0].self_attn, inputs["input_ids"].shape[0]
    width = attention.config.num_attention_heads * attention.head_dim
    probes = rows * len(plugin.sites) * 2.0 * width * seen * inputs["input_ids"].shape[1]
    assert abs(last.flops + probes - realised) <= 0.01 * realised
    assert last.flops < last.flops_bare
    assert abs(last.flops_bare - bare) <= 0.01 * bare
    assert last.attended_per_layer[0] < last.sequence_per_layer[0]
    assert set(last.sequence_per_layer) == {inputs["input_ids"].shape[1]}
    assert "among" in str(handle.stats())


def earlier_turns_are_keys(family: str, plugin: Plugin, attn: str = "sdpa") -> None:
    """The first turn's tokens are keys for everybody who attends in the second one, bypassed or not."""
    model, first = kit.model_of(family, attn), tiny_inputs(family, (1, 2))
    later = tiny_inputs(family, (1, 1), text=(6, 6), seed=8)
    length = first["input_ids"].shape[1]
    turn = next_turn(model, first, family, length, later)
    step = next_turn(model, turn, family, length + later["input_ids"].shape[1], {"input_ids": words(2, 1, 4)})
    bypass: list[dict[int, Tensor]] = []
    logits, cache = [], None
    with attach(model, plugin) as handle:
        for inputs in (first, turn, step):
            out = kit.forward(model, inputs, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits.append(out.logits)
            if len(bypass) < 2:
                passed = kit.bypassed(handle, first if not bypass else later)
                assert passed
                old = torch.zeros(2, length if bypass else 0, dtype=torch.bool)
                bypass.append({layer: torch.cat([old, mask], 1) for layer, mask in passed.items()})
    wanted, cache = [], None
    for inputs, gone, past in ((first, bypass[0], 0), (turn, bypass[1], length), (step, {}, 0)):
        with bypassed_tokens(model, gone, past):
            out = kit.forward(model, inputs, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        wanted.append(out.logits)
    for got, want, real in zip(logits, wanted, (kit.real(first), kit.real(later), None), strict=True):
        kit.same(got if real is None else got[real], want if real is None else want[real])
    bare = kit.forward(model, first).logits
    kit.differs(logits[0][kit.real(first)], bare[kit.real(first)])
