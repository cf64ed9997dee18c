"""Plugins on PEFT models: wrapped before or after attach, adapters on, off, switched and merged.

That dropping equals masking on a wrapped model is held by `test_a_model_with_lora` in tests/contracts/test_modes.py.
"""

import copy
from typing import Any

import pytest
import torch

from tests.contracts import kit
from tests.contracts.snapshot import assert_unchanged, snapshot
from tests.tiny import tiny_inputs, tiny_vlm
from vlm_eff import attach
from vlm_eff.core.plugin import Plugin
from vlm_eff.kvcache import snapkv
from vlm_eff.tokens import fastv, pyramiddrop

peft = pytest.importorskip("peft")
pytestmark = [
    # one that peft may import
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(torchao|bitsandbytes)"),
    pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"]),
]
PLUGIN = pyramiddrop(layers=(2, 4))


def with_lora(model: Any, seed: int = 0) -> Any:
    """LoRA that changes answers: untrained adapters start at zero, and would prove nothing."""
    config = peft.LoraConfig(target_modules=["q_proj", "k_proj", "down_proj"], init_lora_weights=False, r=4)
    torch.manual_seed(seed)
    return peft.get_peft_model(model, config).eval()


def wrapped(family: str) -> Any:
    return with_lora(tiny_vlm(family, layers=kit.LAYERS))


def kept(run: kit.Run) -> list[list[int]]:
    """Survivors of the last layer, a list a row."""
    return [row.tolist() for row in run.handle.survivors(kit.LAYERS - 1)]


def test_keeping_everything_is_exact_and_detach_restores(family: str) -> None:
    model, inputs = wrapped(family), tiny_inputs(family, (1, 2))
    bare, before = kit.bare(model, inputs), snapshot(model)
    assert torch.equal(kit.attached(model, inputs, fastv(layer=2, keep_ratio=1.0)).logits, bare)
    kit.differs(kit.attached(model, inputs, PLUGIN).logits, bare)
    assert_unchanged(before, model)
    assert torch.equal(kit.bare(model, inputs), bare)


@pytest.mark.parametrize("plugin", [fastv(layer=2, keep_ratio=0.3), PLUGIN], ids=lambda plugin: plugin.name)
def test_adapters_equal_the_merged_model(family: str, plugin: Plugin) -> None:
    model, inputs = wrapped(family), tiny_inputs(family, (1, 2))
    merged = copy.deepcopy(model).merge_and_unload()
    one, other = kit.attached(model, inputs, plugin), kit.attached(merged, inputs, plugin)
    assert kept(one) == kept(other)
    left = kit.survivors(one.handle, inputs)[-1] & kit.real(inputs)
    kit.same(one.logits[left], other.logits[left])


def test_adapters_that_are_off_equal_the_model_without(family: str) -> None:
    """One handle sees adapters go off and on: what is kept follows the model as it computes."""
    model, inputs = wrapped(family), tiny_inputs(family, (1, 2))
    with attach(model, PLUGIN) as handle:
        on = kit.bare(model, inputs)
        with model.disable_adapter():
            off = kit.Run(handle, kit.bare(model, inputs))
            kept_off = kept(off)
        assert torch.equal(kit.bare(model, inputs), on)
    plain = kit.attached(kit.model_of(family), inputs, PLUGIN)
    assert torch.equal(off.logits, plain.logits) and kept_off == kept(plain)
    kit.differs(on, off.logits)


def test_wrapping_an_attached_model(family: str) -> None:
    """PEFT puts its layers into the model it is given: hooks stay where they are."""
    model, inputs = tiny_vlm(family, layers=kit.LAYERS), tiny_inputs(family, (1, 2))
    want = kit.attached(wrapped(family), inputs, PLUGIN)
    handle = attach(model, PLUGIN)
    late = with_lora(model)
    got = kit.bare(late, inputs)
    handle.detach()
    assert torch.equal(got, want.logits) and kept(kit.Run(handle, got)) == kept(want)
    assert torch.equal(kit.bare(late, inputs), kit.bare(wrapped(family), inputs))


def test_switching_adapters_and_a_cache(family: str) -> None:
    """A second adapter under the same handle answers as it does alone, with a plugin of the cache beside."""
    model, inputs = wrapped(family), tiny_inputs(family, (1, 2))
    torch.manual_seed(1)
    model.add_adapter("second", model.peft_config["default"])
    plugins = (PLUGIN, snapkv(keep_ratio=0.5))
    with attach(model, *plugins):
        first = kit.generate(model, inputs, 4)[1]
        model.set_adapter("second")
        second = kit.generate(model, inputs, 4)[1]
    alone = kit.attached_generate(model, inputs, *plugins, steps=4)
    assert torch.equal(second, alone.logits)
    kit.differs(first[:, 0], second[:, 0])
