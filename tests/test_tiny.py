"""The tiny models, their inputs and the oracle are themselves tested, so that later failures are the library's."""

from functools import lru_cache
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.oracle import attention_rows, decoder_layers, masked_generate, masked_logits
from tests.tiny import (
    FAMILIES,
    UNSUPPORTED,
    VIDEO_FAMILIES,
    TinyInputs,
    row,
    tiny_inputs,
    tiny_vlm,
    visual_layout,
    visual_mask,
)
from tests.tiny.ids import NEVER_GENERATED

TOLERANCE = {"rtol": 0.0, "atol": 1e-4}
LAYER = 2
MEDIA = [(family, False) for family in FAMILIES] + [
    (family, kind) for family in VIDEO_FAMILIES for kind in (True, "mixed")
]
PIXELS_PER_TOKEN = {"llava": 4, "paligemma": 4} | dict.fromkeys(("internvl", "idefics3", "gemma3", "mistral3"), 8)
CASES = [((1,), "left"), ((1, 2), "left"), ((1, 2), "right")]


@lru_cache
def model_of(family: str, attn: str = "sdpa") -> PreTrainedModel:
    return tiny_vlm(family, attn=attn)


def bare_logits(model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def every_second(visual: Tensor) -> Tensor:
    return visual & (torch.arange(visual.shape[1]) % 2 == 0)


@pytest.mark.parametrize(("rows", "pad"), CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_and_generate_run(family: str, rows: tuple[int, ...], pad: str) -> None:
    model, inputs = model_of(family), tiny_inputs(family, rows, pad=pad)
    logits = bare_logits(model, inputs)
    assert logits.isfinite().all()
    assert logits.abs().max() < 50
    tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert tokens.shape == (len(rows), 3)
    assert not torch.isin(tokens, torch.tensor(NEVER_GENERATED)).any()


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize(("family", "video"), MEDIA)
def test_padded_batch_equals_single_rows(family: str, video: bool | str, pad: str) -> None:
    model, inputs = model_of(family), tiny_inputs(family, (1, 2, 0), pad=pad, video=video)
    batch = bare_logits(model, inputs)
    for index in range(3):
        real = inputs["attention_mask"][index].bool()
        torch.testing.assert_close(batch[index, real], bare_logits(model, row(inputs, index))[0], **TOLERANCE)


@pytest.mark.parametrize(("family", "video"), MEDIA)
def test_left_padded_generation_equals_single_rows(family: str, video: bool | str) -> None:
    model, inputs = model_of(family), tiny_inputs(family, (1, 2), video=video)
    tokens, logits = masked_generate(model, inputs, {}, 3)
    for index in range(2):
        row_tokens, row_logits = masked_generate(model, row(inputs, index), {}, 3)
        assert row_tokens[0].tolist() == tokens[index].tolist()
        torch.testing.assert_close(row_logits[0], logits[index], **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_models_and_inputs_depend_on_the_seed_alone(family: str) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, second = tiny_vlm(family, seed=3), tiny_vlm(family, seed=3)
    inputs, again = tiny_inputs(family, (1,), seed=3), tiny_inputs(family, (1,), seed=3)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(inputs[key], again[key]) for key in inputs)
    assert not torch.equal(inputs["pixel_values"], tiny_inputs(family, (1,), seed=4)["pixel_values"])


@pytest.mark.parametrize(("family", "video"), MEDIA)
def test_layout_covers_every_placeholder_once(family: str, video: bool | str) -> None:
    inputs = tiny_inputs(family, (1, 2, 0), video=video)
    layout = visual_layout(family, inputs)
    assert [len(cells) for cells in layout] == visual_mask(inputs).sum(1).tolist()
    for cells, count in zip(layout, (1, 2, 0), strict=True):
        assert [image for image, _ in groupby(cell["image"] for cell in cells)] == list(range(count))
        places = {(cell["image"], cell["frame_or_tile"], cell["y"], cell["x"]) for cell in cells}
        assert len(places) == len(cells)


@pytest.mark.parametrize(
    ("family", "video"), [("llava_next", False), ("llava_onevision", False), ("llava_onevision", True)]
)
@pytest.mark.parametrize("rows", [(1, 1, 1), (2,)])
def test_newlines_are_where_the_model_puts_them(family: str, video: bool, rows: tuple[int, ...]) -> None:
    model, inputs = model_of(family), tiny_inputs(family, rows, video=video)
    embeds = captured_decoder_kwargs(model, inputs)["inputs_embeds"][visual_mask(inputs)]
    cells = [cell for cells in visual_layout(family, inputs) for cell in cells]
    is_newline = torch.isclose(embeds, model.model.image_newline).all(-1)
    assert is_newline.tolist() == [cell["newline"] for cell in cells]


@pytest.mark.parametrize(("family", "side"), PIXELS_PER_TOKEN.items())
def test_layout_places_tokens_where_their_pixels_are(family: str, side: int) -> None:
    """With the tower's attention silenced, a token depends on its own pixels alone."""
    model, inputs = tiny_vlm(family), tiny_inputs(family, (1, 2))
    for name, module in model.get_encoder(modality="image").named_modules():
        if name.endswith(("out_proj", "projection_layer", "o_proj")):
            nn.init.zeros_(module.weight)
    pixels = inputs["pixel_values"].requires_grad_()
    embeds = captured_decoder_kwargs(model, inputs, grad=True)["inputs_embeds"][visual_mask(inputs)]
    cells = [cell for cells in visual_layout(family, inputs) for cell in cells]
    for token, cell in list(zip(embeds, cells, strict=True))[::7]:
        (gradient,) = torch.autograd.grad(token.square().sum(), pixels, retain_graph=True)
        y, x = gradient.nonzero().T[-2:]
        assert (y.min(), y.max() + 1) == (cell["y"] * side, (cell["y"] + 1) * side)
        assert (x.min(), x.max() + 1) == (cell["x"] * side, (cell["x"] + 1) * side)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_oracle_has_no_effect_without_drops_and_power_with_them(family: str, attn: str) -> None:
    model, inputs = model_of(family, attn), tiny_inputs(family, (1, 2))
    real, visual = inputs["attention_mask"].bool(), visual_mask(inputs)
    bare = bare_logits(model, inputs)
    same = masked_logits(model, inputs, {0: torch.zeros_like(visual)})
    torch.testing.assert_close(same[real], bare[real], **TOLERANCE)
    fewer = masked_logits(model, inputs, {LAYER: visual})
    assert fewer.isfinite().all()
    assert ((fewer - bare)[:, -1].abs().amax(-1) > 1e-2).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_oracle_equals_a_shorter_sequence(family: str) -> None:
    """Dropping at layer 0 is the same as never feeding the token: the one case a plain model can do for itself."""
    model, inputs = model_of(family), tiny_inputs(family, (2,))
    gone = every_second(visual_mask(inputs))
    keep = ~gone[0]
    short = shorter_logits(model, inputs, keep)
    torch.testing.assert_close(masked_logits(model, inputs, {0: gone})[:, keep], short, **TOLERANCE)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_oracle_decoding_equals_one_pass_over_prompt_and_answer(family: str, attn: str) -> None:
    model, inputs, steps = model_of(family, attn), tiny_inputs(family, (1, 2)), 6
    visual = visual_mask(inputs)
    dropped = {LAYER: every_second(visual), LAYER + 2: visual}
    tokens, logits = masked_generate(model, inputs, dropped, steps)
    added = {"input_ids": tokens[:, :-1], "attention_mask": 1, "mm_token_type_ids": 0}
    # PaliGemma's answer is the causal suffix, marked with 1; Gemma3 marks text with 0.
    added["token_type_ids"] = int(family == "paligemma")
    longer = dict(inputs)
    for key in added.keys() & inputs.keys():
        longer[key] = torch.cat([inputs[key], torch.zeros_like(tokens[:, :-1]) + added[key]], dim=1)
    padded = {layer: nn.functional.pad(gone, (0, steps - 1)) for layer, gone in dropped.items()}
    torch.testing.assert_close(masked_logits(model, longer, padded)[:, -steps:], logits, **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_rows_are_distributions_over_visible_keys(family: str) -> None:
    model, inputs = model_of(family), tiny_inputs(family, (1, 2))
    real, visual = inputs["attention_mask"].bool(), visual_mask(inputs)
    last = attention_rows(model, inputs, 3)[:, :, -1]
    assert last.shape == (2, 4, real.shape[1])
    torch.testing.assert_close(last.sum(-1), torch.ones(2, 4), **TOLERANCE)
    assert last.masked_fill(real[:, None], 0).abs().max() == 0
    without = attention_rows(model, inputs, 3, {LAYER: visual})[:, :, -1]
    assert without.masked_fill(~visual[:, None], 0).abs().max() == 0
    assert model.config._attn_implementation == "sdpa"


def test_oracle_leaves_no_hooks_even_after_an_error() -> None:
    model, inputs = model_of("llava"), tiny_inputs("llava")
    bare_logits(model, inputs)
    before = [len(layer._forward_pre_hooks) for layer in decoder_layers(model)]
    with pytest.raises(TypeError):
        masked_logits(model, inputs, {1: visual_mask(inputs)}, input_ids=None)
    masked_logits(model, inputs, {1: visual_mask(inputs)})
    assert [len(layer._forward_pre_hooks) for layer in decoder_layers(model)] == before


@pytest.mark.parametrize(("family", "case"), [key for key in UNSUPPORTED if key[1].startswith("eager-float64")])
def test_unsupported_precision_still_fails(family: str, case: str) -> None:
    model = tiny_vlm(family, attn="eager", dtype=torch.float64)
    inputs = tiny_inputs(family, (1, 2), pad=case.rsplit("-", 1)[1]).to(dtype=torch.float64)
    assert bare_logits(model, inputs)[inputs["attention_mask"].bool()].isnan().any()


@pytest.mark.parametrize("family", FAMILIES)
def test_right_padded_generation_is_still_wrong(family: str) -> None:
    assert (family, "generate-right") in UNSUPPORTED
    model, inputs = model_of(family), tiny_inputs(family, (1, 2), pad="right")
    _, logits = masked_generate(model, inputs, {}, 1)
    longest = int(inputs["attention_mask"].sum(1).argmax())
    for index in range(2):
        _, alone = masked_generate(model, row(inputs, index), {}, 1)
        assert torch.allclose(alone[0], logits[index], **TOLERANCE) == (index == longest)


def captured_decoder_kwargs(model: PreTrainedModel, inputs: TinyInputs, grad: bool = False) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    hook = model.get_decoder().register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    with torch.set_grad_enabled(grad):
        model(**inputs)
    hook.remove()
    return seen


def shorter_logits(model: PreTrainedModel, inputs: TinyInputs, keep: Tensor) -> Tensor:
    """Logits of the model when its decoder is fed only the kept positions, at their original position ids."""
    visual = visual_mask(inputs)[0]
    square = torch.outer(keep, keep)
    size = int(keep.sum())

    def shorten(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        positions = kwargs.get("position_ids")
        positions = torch.arange(len(keep))[None] if positions is None else positions
        mask = kwargs["attention_mask"]
        if isinstance(mask, dict):
            mask = {kind: one[..., square].unflatten(-1, (size, size)) for kind, one in mask.items()}
        else:
            mask = mask[..., square].unflatten(-1, (size, size)) if mask.dim() == 4 else mask[:, keep]
        changed = {"inputs_embeds": kwargs["inputs_embeds"][:, keep], "position_ids": positions[..., keep]}
        if kwargs.get("deepstack_visual_embeds"):
            changed["visual_pos_masks"] = visual[None, keep]
            changed["deepstack_visual_embeds"] = [one[keep[visual]] for one in kwargs["deepstack_visual_embeds"]]
        return args, kwargs | changed | {"attention_mask": mask}

    hook = model.get_decoder().register_forward_pre_hook(shorten, with_kwargs=True)
    try:
        return bare_logits(model, inputs)
    finally:
        hook.remove()
