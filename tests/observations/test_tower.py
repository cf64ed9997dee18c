"""Attention in the vision tower: equal to eager weights, and brought to the tokens that the patches become."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, SiglipVisionConfig

from tests.observations.spy import Spy
from tests.tiny import FAMILIES, VIDEO_FAMILIES, row, tiny_inputs, tiny_vlm
from vlm_eff import attach
from vlm_eff.core.errors import CapabilityError
from vlm_eff.core.plugin import TowerAttention, TowerFeatures, TowerKeys
from vlm_eff.models.adapter import Adapter, adapter_for
from vlm_eff.models.tower import attention_of
from vlm_eff.tokens import fastervlm, tome

WITH_CLASS = ("llava", "llava_next", "internvl")
# the tokens of these come from the projector's output by joining, cutting and resizing
ANYRES = ("llava_next", "llava_onevision")


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
    skip = 1 if adapter.class_token else 0
    mean = [matrix.mean(1) for matrix in weights]
    return torch.cat([(m[:, 0] if row == "cls" else m.mean(1))[:, skip:].reshape(-1) for m in mean])


def features_of(adapter: Adapter, inputs: dict) -> list[Tensor]:
    """The model's own packed features of all images."""
    names = ["pixel_values", "image_grid_thw", "pixel_attention_mask", "batch_num_images"]
    if adapter.name in ("mistral3", "idefics3", "smolvlm", *ANYRES):
        names.append("image_sizes")
    keys = {k: v for k, v in inputs.items() if k in names}
    return list(adapter.core.get_image_features(**keys, return_dict=True).pooler_output)


def membership(family: str, inputs: dict) -> Tensor:
    """[T, P]: how much of each token comes from each patch, read off by gradient (no map of ours involved)."""
    adapter = adapter_for(tiny_vlm(family))
    config = adapter.core.config
    # only what comes after the blocks may mix patches: take the output that the projector reads
    layer = config.vision_feature_layer if family in ("llava", "internvl") else -1
    module = adapter.core.multi_modal_projector if family in ANYRES else adapter.blocks[layer]
    outputs = []

    def grab(owner, args, output):
        leaf = (output[0] if isinstance(output, tuple) else output).detach().requires_grad_(True)
        outputs.append(leaf)
        return (leaf, *output[1:]) if isinstance(output, tuple) else leaf

    hook = module.register_forward_hook(grab)
    tokens = torch.cat([f.reshape(-1, f.shape[-1]) for f in features_of(adapter, inputs)])
    hook.remove()
    rows = []
    for token in tokens:
        if family in ANYRES:
            # the first channel of a token is a mean of first channels; a newline is made of none
            if token.requires_grad and (weight := gradient(token[0], outputs[-1])[..., 0]).any():
                rows.append(weight.reshape(-1))
            continue
        seed = torch.randn(len(token), generator=torch.Generator().manual_seed(0))
        grad = gradient((token * seed).sum(), outputs[-1])
        grad = grad if grad.dim() == 3 else grad[None]
        rows.append((grad[:, 1 if adapter.class_token else 0 :].abs().sum(-1) > 0).reshape(-1).float())
    return torch.stack(rows)


def gradient(value: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(value, leaf, retain_graph=True)[0]


def one_head(query: Tensor, key: Tensor) -> Tensor:
    """Attention of all heads side by side as one [b, N, N]."""
    query, key = (torch.cat(list(states.unbind(1)), -1) for states in (query, key))
    return torch.softmax(query @ key.transpose(1, 2) / query.shape[-1] ** 0.5, -1)


@pytest.mark.parametrize("family", FAMILIES)
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
    if family == "mistral3":
        # its images share one sequence: a patch can only be looked at by those of its own image
        own = torch.tensor([int(h) * int(w) // 16 for h, w in inputs["image_sizes"]])
        share = (own / own.sum()).repeat_interleave(own // 4)
        expected = expected / share
    model = tiny_vlm(family)
    for asked in (row, "auto") if (row == "cls") == (family in WITH_CLASS) else (row,):
        seen = []
        with torch.no_grad(), attach(model, tower_spy(TowerAttention(0, asked), seen)):
            model(**inputs)
        values, spans = seen[0]
        got = values[spans.valid]
        assert got.std() > 1e-4, "a constant would match anything"
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision", "qwen2_5_vl"])
def test_generate_with_beams_repeats_rows(family: str) -> None:
    inputs, model, plain, beams = tiny_inputs(family, (1, 2)), tiny_vlm(family), [], []
    wanted = TowerAttention(-1)
    with torch.no_grad(), attach(model, tower_spy(wanted, plain)):
        model(**inputs)
    with attach(model, tower_spy(wanted, beams)):
        model.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False)
    torch.testing.assert_close(beams[0][0], plain[0][0].repeat_interleave(2, 0), atol=1e-6, rtol=1e-5)


def test_a_missing_block_is_refused() -> None:
    with pytest.raises(CapabilityError, match="block 99"):
        attach(tiny_vlm("llava"), tower_spy(TowerAttention(99), []))


def look(family: str, inputs: dict, wanted: TowerAttention | TowerKeys, **kwargs: object) -> list[Tensor]:
    """Values of each row's candidates, the rows one after the other."""
    seen, model = [], tiny_vlm(family)
    read = (lambda view: view.tower(wanted)) if isinstance(wanted, TowerAttention) else lambda v: v.tower_keys(wanted)
    with torch.no_grad(), attach(model, Spy(wanted, lambda view: (read(view), view.spans), seen)):
        model(**inputs, **kwargs)
    values, spans = seen[0]
    return [values[index, mask] for index, mask in enumerate(spans.valid)]


@pytest.mark.parametrize("video", [True, "mixed"])
@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_a_batch_of_videos_equals_its_rows(family: str, video: bool | str) -> None:
    """Images are encoded in one run of the tower and videos in another; the prompt mixes them."""
    inputs = tiny_inputs(family, (1, 2, 3), video=video)
    batch = look(family, inputs, TowerAttention(-1))
    for index in range(3):
        torch.testing.assert_close(batch[index], look(family, row(inputs, index), TowerAttention(-1))[0])


def test_frames_of_onevision_are_pooled_with_the_weights_of_resizing() -> None:
    inputs, model = tiny_inputs("llava_onevision", (1,), video=True), tiny_vlm("llava_onevision")
    patches, tokens = [], []
    for block, into in ((TowerKeys(-1), tokens),):
        into.append(look("llava_onevision", inputs, block)[0])
    hook = model.model.vision_tower.encoder.layers[-1].self_attn.k_proj.register_forward_hook(
        lambda m, a, out: patches.append(out.unflatten(-1, (2, -1)).mean(2))
    )
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    maps = patches[0].view(-1, 3, 3, 16).permute(0, 3, 1, 2)
    pooled = torch.nn.functional.interpolate(maps, size=(2, 2), mode="bilinear").flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens[0], pooled.flatten(0, 1))


@pytest.mark.parametrize("heads", ["mean", "joined"])
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_keys_and_one_head_attention_equal_the_projections(family: str, heads: str) -> None:
    inputs, raw = tiny_inputs(family, (1, 2)), {}
    adapter = adapter_for(tiny_vlm(family))
    attention = attention_of(adapter.blocks[1])
    hooks = [
        getattr(attention, name).register_forward_hook(lambda m, a, out, name=name: raw.update({name: out}))
        for name in ("q_proj", "k_proj")
    ]
    with torch.no_grad():
        adapter.top(**inputs)
    for hook in hooks:
        hook.remove()
    query, key = (raw[name].unflatten(-1, (2, -1)).transpose(1, 2) for name in ("q_proj", "k_proj"))
    member = membership(family, inputs)
    member = member / member.sum(1, keepdim=True)
    patches = key.mean(1) if heads == "mean" else raw["k_proj"]
    got = torch.cat(look(family, inputs, TowerKeys(1, heads)))
    torch.testing.assert_close(got, member @ patches[:, 1:].flatten(0, 1), atol=1e-5, rtol=1e-4)
    if heads == "joined":
        for asked, weights in (("cls", one_head(query, key)[:, 0]), ("received", one_head(query, key).mean(1))):
            got = torch.cat(look(family, inputs, TowerAttention(1, asked, "joined")))
            torch.testing.assert_close(got, member @ weights[:, 1:].flatten(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_projected_features_are_the_tokens(family: str) -> None:
    """The projector applied to the features of a token gives the token; elsewhere tokens are their own features."""
    inputs, seen, model = tiny_inputs(family, (1, 2)), [], tiny_vlm(family)
    wanted = TowerFeatures()

    def both(view):
        features = view.tower_features(wanted)
        return features, view.project(features), view.visual_hidden(), view.spans

    with torch.no_grad(), attach(model, Spy(wanted, both, seen)):
        model(**inputs)
        model(**inputs)
    for features, projected, hidden, spans in seen:
        assert features.shape[-1] == 32
        torch.testing.assert_close(projected[spans.valid], hidden[spans.valid], atol=1e-5, rtol=1e-4)


def test_features_of_merged_patches_are_the_tokens_themselves() -> None:
    inputs, seen, model = tiny_inputs("qwen2_vl", (1, 2)), [], tiny_vlm("qwen2_vl")
    wanted = TowerFeatures()
    with (
        torch.no_grad(),
        attach(model, Spy(wanted, lambda v: (v.project(v.tower_features(wanted)), v.visual_hidden()), seen)),
    ):
        model(**inputs)
    assert torch.equal(*seen[0])


def test_negative_blocks_of_a_tower_with_windows_see_the_whole_image() -> None:
    adapter = adapter_for(tiny_vlm("qwen2_5_vl"))
    # of three blocks the middle one has no windows
    assert adapter.block(None) == 1
    assert adapter_for(tiny_vlm("llava")).block(None) == 1, "features are those before the last block"
    assert adapter_for(tiny_vlm("internvl")).block(None) == 2
    assert [adapter.block(index) for index in (-1, -2, -3, 2, 0)] == [1, 1, 0, 2, 0]
    assert [adapter_for(tiny_vlm("qwen2_vl")).block(index) for index in (-1, -3)] == [2, 0]


def test_a_tower_without_class_token_in_a_family_that_has_one() -> None:
    config = tiny_vlm("llava").config
    config.vision_config = SiglipVisionConfig(
        **config.vision_config.to_dict() | {"model_type": "siglip_vision_model", "vision_use_head": False}
    )
    config.vision_feature_select_strategy = "full"
    assert not adapter_for(LlavaForConditionalGeneration(config).eval()).class_token


def test_blocks_whose_patches_are_merged_are_refused() -> None:
    inputs, model = tiny_inputs("llava", (1,)), tiny_vlm("llava")
    with pytest.raises(CapabilityError, match="merged or dropped"):
        attach(model, tome(), fastervlm())
    with torch.no_grad(), attach(model, tome(), fastervlm(block=0)) as handle:
        model(**inputs)
    assert len(handle.survivors(0)[0]) < inputs["input_ids"].shape[1]
