"""Keys of the text and the input of an earlier layer: equal to what the bare model computes there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.observations.spy import Spy
from tests.oracle import decoder_layers
from tests.tiny import tiny_inputs, tiny_vlm, visual_mask
from vlm_eff import attach
from vlm_eff.core.errors import CapabilityError, StateError
from vlm_eff.core.plugin import LayerInput, LayerKeys
from vlm_eff.tokens import random_drop

FAMILIES = ("llava", "llava_next", "qwen3_vl", "gemma3")


def run(family: str, pad: str, spy: Spy, *others: Any) -> tuple[Any, Any]:
    model, inputs = tiny_vlm(family), tiny_inputs(family, (1, 2, 0), pad=pad)  # type: ignore[arg-type]
    with torch.no_grad(), attach(model, spy, *others):
        model(**inputs)
    return model, inputs


def bare_input(model: Any, inputs: Any, layer: int) -> Tensor:
    seen: list[Tensor] = []
    hook = decoder_layers(model)[layer].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_input_of_an_earlier_layer(family: str, pad: str) -> None:
    wanted, seen = LayerInput(1), []
    spy = Spy(wanted, lambda view: (view.layer_input(wanted, view.candidates()), view.spans), seen, 3)
    model, inputs = run(family, pad, spy)
    got, spans = seen[0]
    want = bare_input(model, inputs, 1)
    for index in range(3):
        ok = spans.valid[index]
        assert torch.equal(got[index, ok], want[index, spans.slot[index, ok]])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_input_of_a_layer_after_a_drop(family: str) -> None:
    """Candidates are found by their slot although the layer saw a shorter sequence."""
    wanted, seen = LayerInput(2), []
    spies = (
        Spy(wanted, lambda view: view.visual_hidden()[view.spans.valid], seen, 2),
        Spy(wanted, lambda view: view.layer_input(wanted, view.candidates())[view.spans.valid], seen, 3),
    )
    run(family, "left", spies[0], random_drop(layer=1, keep_ratio=0.4), spies[1])
    assert torch.equal(*seen)


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_keys_of_the_text(family: str, pad: str) -> None:
    wanted, seen = LayerKeys(1), []
    look = Spy(wanted, lambda view: (view.layer_keys(wanted, view.text("all")), view.text("all")), seen, 2)
    model, inputs = run(family, pad, look)
    keys, text = seen[0]
    with torch.no_grad():
        cached = model(**inputs, use_cache=True).past_key_values.layers[1].keys.transpose(1, 2)
    # a sliding layer keeps the end of the keys only
    cut = inputs["input_ids"].shape[1] - cached.shape[1]
    visual, found = visual_mask(inputs), 0
    for index in range(3):
        slots = text.slot[index, text.valid[index]]
        assert not bool(visual[index, slots].any())
        assert bool(inputs["attention_mask"][index, slots].all())
        inside = slots >= cut
        got = keys[index, text.valid[index]][inside]
        assert torch.equal(got, cached[index, slots[inside] - cut])
        found += len(got)
    assert found > 3


def test_what_was_not_asked_for_is_refused() -> None:
    wanted = LayerInput(1)
    spy = Spy(LayerKeys(0), lambda view: view.layer_input(wanted, view.candidates()), [], 2)
    with pytest.raises(StateError, match="input of layer 1"):
        run("llava", "left", spy)
    with pytest.raises(CapabilityError, match="layer 9"):
        run("llava", "left", Spy(LayerInput(9), lambda view: None, [], 2))
