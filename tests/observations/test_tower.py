"""Attention in the vision tower: equal to eager weights, and brought to the tokens that the patches become."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from tests.observations.spy import Spy
from tests.tiny import tiny_inputs, tiny_vlm
from vlm_eff import attach
from vlm_eff.core.errors import CapabilityError
from vlm_eff.core.plugin import TowerAttention
from vlm_eff.models.adapter import adapter_for
from vlm_eff.models.tower import attention_of

MAPPED = ("llava", "paligemma", "gemma3", "internvl", "idefics3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mistral3")
WITH_CLASS = ("llava", "internvl")


def tower_spy(wanted: TowerAttention, seen: list) -> Spy:
    return Spy(wanted, lambda view: (view.tower(wanted), view.spans), seen)


def eager_patches(family: str, inputs: dict, block: int, row: str, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The same number for each patch, from the full matrices that the family's own eager attention returns."""
    model = tiny_vlm(family, attn="eager")
    adapter = adapter_for(model)
    attention = attention_of(adapter.blocks[block])
    module = sys.modules[type(attention).__module__]
    eager, weights = module.eager_attention_forward, []

    def spy(owner, *args, **kwargs):
        output, matrix = eager(owner, *args, **kwargs)
        if owner is attention:
            weights.append(matrix)
        return output, matrix

    with monkeypatch.context() as patch:
        patch.setattr(module, "eager_attention_forward", spy)
        with torch.no_grad():
            model(**inputs)
    skip = 1 if adapter.family.class_token else 0
    mean = [matrix.mean(1) for matrix in weights]
    return torch.cat([(m[:, 0] if row == "cls" else m.mean(1))[:, skip:].reshape(-1) for m in mean])


def membership(family: str, inputs: dict) -> Tensor:
    """[T, P]: which patches each token of the prompt is made from, read off by gradient (no map of ours involved)."""
    model = tiny_vlm(family)
    adapter = adapter_for(model)
    # only what comes after the blocks may mix patches: take the output that the projector reads
    layer = getattr(model.config, "vision_feature_layer", None)
    block = adapter.blocks[layer if isinstance(layer, int) and layer < 0 and family == "llava" else -1]
    if family in ("llava", "internvl"):
        block = adapter.blocks[model.config.vision_feature_layer]
    outputs = []

    def grab(owner, args, output):
        leaf = (output[0] if isinstance(output, tuple) else output).detach().requires_grad_(True)
        outputs.append(leaf)
        return (leaf, *output[1:]) if isinstance(output, tuple) else leaf

    hook = block.register_forward_hook(grab)
    names = ("pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask")
    keys = {k: v for k, v in inputs.items() if k in names}
    if family not in ("mistral3", "idefics3"):
        keys.pop("image_sizes", None)
    features = adapter.core.get_image_features(**keys, return_dict=True).pooler_output
    hook.remove()
    tokens = torch.cat([f.reshape(-1, f.shape[-1]) for f in features])
    skip = 1 if adapter.family.class_token else 0
    weight = torch.randn(tokens.shape[1], generator=torch.Generator().manual_seed(0))
    rows = []
    for token in tokens:
        grad = torch.autograd.grad((token * weight).sum(), outputs[-1], retain_graph=True)[0]
        grad = grad if grad.dim() == 3 else grad[None]
        rows.append((grad[:, skip:].abs().sum(-1) > 0).reshape(-1))
    return torch.stack(rows).float()


@pytest.mark.parametrize("family", MAPPED)
@pytest.mark.parametrize("row", ["received", "cls"])
def test_equals_eager_weights(family: str, row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if row == "cls" and family not in WITH_CLASS:
        with pytest.raises(CapabilityError, match="class token"):
            attach(tiny_vlm(family), tower_spy(TowerAttention(-1, "cls"), []))
        return
    inputs = tiny_inputs(family, (1, 2))
    patches = eager_patches(family, inputs, 0, row, monkeypatch)
    member = membership(family, inputs)
    expected = (member @ patches) / member.sum(1)
    model, seen = tiny_vlm(family), []
    with torch.no_grad(), attach(model, tower_spy(TowerAttention(0, row), seen)):
        model(**inputs)
    values, spans = seen[0]
    got = values[spans.valid]
    assert got.std() > 1e-4, "a constant would match anything"
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_generate_with_beams_repeats_rows(family: str) -> None:
    inputs, model, plain, beams = tiny_inputs(family, (1, 2)), tiny_vlm(family), [], []
    wanted = TowerAttention(-1)
    with torch.no_grad(), attach(model, tower_spy(wanted, plain)):
        model(**inputs)
    with attach(model, tower_spy(wanted, beams)):
        model.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False)
    torch.testing.assert_close(beams[0][0], plain[0][0].repeat_interleave(2, 0), atol=1e-6, rtol=1e-5)


def test_unmapped_family_and_missing_block_are_refused() -> None:
    with pytest.raises(CapabilityError, match="not mapped"):
        attach(tiny_vlm("llava_next"), tower_spy(TowerAttention(-1), []))
    with pytest.raises(CapabilityError, match="block 99"):
        attach(tiny_vlm("llava"), tower_spy(TowerAttention(99), []))
