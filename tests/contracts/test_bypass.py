"""Bypassing a layer's attention obeys the laws of dropping: exactness, batches, decoding, restored models."""

import pytest
import torch

from tests.contracts import checks, checks_bypass, checks_life, kit
from tests.contracts import checks_modes as modes
from tests.contracts.cases import BYPASS_CASES, HARD
from tests.tiny import FAMILIES, VIDEO_FAMILIES, tiny_inputs
from vlm_eff.tokens import zipvl_attention

EASY = {name: easy for name, (easy, _, _) in BYPASS_CASES.items()}
TOUGH = {name: hard for name, (_, hard, _) in BYPASS_CASES.items()}
PAIRS = [(family, name) for family in FAMILIES for name in BYPASS_CASES]
BATCHES = {"one": ((1,), "left"), "ragged-left": ((1, 2, 0), "left"), "ragged-right": ((1, 2, 0), "right")}
attentions = pytest.mark.parametrize("attn", ["sdpa", "eager"])
pairs = pytest.mark.parametrize(("family", "name"), PAIRS)


@attentions
@pairs
def test_keeping_everything_changes_no_bit(family: str, name: str, attn: str) -> None:
    checks.keep_all_is_bit_identical(family, attn, BYPASS_CASES[name][2])


@pytest.mark.parametrize("batch", BATCHES)
@attentions
@pairs
def test_bypassing_equals_masking_in_every_batch(family: str, name: str, attn: str, batch: str) -> None:
    checks.drop_equals_mask(family, attn, TOUGH[name], *BATCHES[batch])


@pairs
def test_bypassing_equals_masking_with_defaults(family: str, name: str) -> None:
    checks.drop_equals_mask(family, "sdpa", EASY[name])


@pytest.mark.parametrize("name", BYPASS_CASES)
@pytest.mark.parametrize("video", [True, "mixed"])
@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_bypassing_equals_masking_on_video(family: str, video: bool | str, name: str) -> None:
    checks.drop_equals_mask(family, "sdpa", TOUGH[name], (1, 2, 0), "right", video)


@attentions
@pairs
def test_decoding_equals_masked_decoding(family: str, name: str, attn: str) -> None:
    checks.generate_equals_masked_generate(family, attn, TOUGH[name])


@pairs
def test_eager_equals_sdpa(family: str, name: str) -> None:
    checks.eager_equals_sdpa(family, TOUGH[name])


@pairs
def test_bypassing_equals_masking_in_float64(family: str, name: str) -> None:
    checks.double_equals_masked_double(family, TOUGH[name])


@pytest.mark.parametrize("pad", ["left", "right"])
@pairs
def test_a_batch_equals_its_rows(family: str, name: str, pad: str) -> None:
    checks.batch_equals_rows(family, TOUGH[name], pad=pad)


@pairs
def test_only_image_tokens_bypass_and_all_are_kept(family: str, name: str) -> None:
    checks_bypass.only_image_tokens_bypass(family, TOUGH[name])


@pairs
def test_flops_are_measured(family: str, name: str) -> None:
    checks_bypass.attention_alone_is_saved(family, TOUGH[name])


@pytest.mark.parametrize("name", BYPASS_CASES)
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_beams(family: str, name: str) -> None:
    modes.several_rows_a_prompt(family, TOUGH[name], num_beams=2)


@pytest.mark.parametrize("name", BYPASS_CASES)
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_candidates_do_not_move_the_choice(family: str, name: str) -> None:
    modes.candidates_do_not_move_the_choice(family, TOUGH[name])


@pytest.mark.parametrize("name", BYPASS_CASES)
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_detach_restores(family: str, name: str) -> None:
    checks_life.detach_restores(family, "sdpa", TOUGH[name])


@pytest.mark.parametrize("first", ["fastv", "pyramiddrop"])
@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bypassing_among_survivors_equals_masking(family: str, pad: str, first: str) -> None:
    """One plugin drops, another bypasses among what is left; both together are the masked run."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0), pad=pad)
    run = kit.attached(model, inputs, HARD[first], TOUGH["zipvl_attention"])
    assert kit.bypassed(run.handle, inputs), "nobody bypassed anything"
    left = kit.survivors(run.handle, inputs)[-1] & kit.real(inputs)
    want = kit.reference_logits(model, inputs, HARD[first], run.handle)
    kit.same(run.logits[left], want[left])
    alone = kit.attached(model, inputs, HARD[first])
    kit.differs(run.logits[left], alone.logits[left])


@attentions
def test_a_second_image_on_the_same_cache(attn: str) -> None:
    """Tokens of earlier turns are keys for whoever attends, in a layer that bypasses."""
    checks_bypass.earlier_turns_are_keys("llava", zipvl_attention(keep_mass=0.6, layers=(1, 2), recent=0.2), attn)


def test_bfloat16_runs() -> None:
    model = kit.model_of("llava", "sdpa", torch.bfloat16)
    inputs = tiny_inputs("llava", (1, 2)).to(dtype=torch.bfloat16)
    run = kit.attached(model, inputs, TOUGH["zipvl_attention"])
    want = kit.reference_logits(model, inputs, TOUGH["zipvl_attention"], run.handle)
    real = kit.real(inputs)
    kit.same(run.logits[real].float(), want[real].float(), relative=0.15)
