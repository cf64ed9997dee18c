"""Beams, turns, caches, assisted decoding, losses, wrappers: dropping equals masking there too."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.contracts import checks, checks_cache, kit
from tests.contracts import checks_modes as modes
from tests.contracts.cases import EASY, HARD, HARDEST, KEEP_ALL, METHOD_CASES
from tests.contracts.checks_life import Pipe
from tests.tiny import FAMILIES, tiny_inputs, tiny_vlm
from vlm_eff.core.plugin import Plugin
from vlm_eff.tokens import fastv, pyramiddrop, random_drop, uniform_grid

METHODS = tuple(METHOD_CASES)
FEW = ("llava", "llava_next", "qwen2_vl", "qwen3_vl", "gemma3")
SEVERAL = {
    "beams": {"num_beams": 2},
    "beams-returned": {"num_beams": 3, "num_return_sequences": 2},
    "samples": {"num_return_sequences": 2, "do_sample": True},
}


@pytest.mark.parametrize("mode", SEVERAL)
@pytest.mark.parametrize("family", FAMILIES)
def test_several_rows_a_prompt(family: str, mode: str) -> None:
    modes.several_rows_a_prompt(family, HARDEST, **SEVERAL[mode])


@pytest.mark.parametrize("name", METHODS)
def test_beams_with_every_method(name: str) -> None:
    modes.several_rows_a_prompt("qwen2_vl", HARD[name], num_beams=2)


@pytest.mark.parametrize("name", ["pyramiddrop", "random_drop"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_question_on_the_same_cache(family: str, name: str) -> None:
    modes.second_turn_of_text(family, HARD[name])


@pytest.mark.parametrize("name", ["pyramiddrop", "fastv", "uniform_grid"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_image_on_the_same_cache(family: str, name: str) -> None:
    modes.second_turn_with_an_image(family, HARD[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_request_after_an_image_request(family: str) -> None:
    modes.text_after_an_image(family, HARDEST)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_questions_on_copies_of_one_prefix(family: str) -> None:
    modes.prefix_is_reused(family, HARDEST)


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "feather", "random_drop"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_prompt_lookup_equals_greedy(family: str, name: str) -> None:
    modes.prompt_lookup_equals_greedy(family, HARD[name], least=name == "fastv")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_candidates_do_not_move_the_choice(family: str, name: str) -> None:
    modes.candidates_do_not_move_the_choice(family, HARD[name])


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_asking_for_all_logits_is_no_silent_keeping(family: str) -> None:
    modes.all_logits_drop_the_same(family, HARD["uniform_grid"])


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_asking_for_all_logits_with_a_cache_moves_no_choice(family: str) -> None:
    modes.all_logits_drop_the_same(family, HARD["fastv"], cached=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_without_a_cache(family: str) -> None:
    modes.decoding_without_a_cache(family, HARD["uniform_grid"])


@pytest.mark.parametrize("family", FAMILIES)
def test_cropping_stops_at_the_image(family: str) -> None:
    checks_cache.crop_stops_at_the_image(family, HARDEST)


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_a_refused_crop_changes_nothing(family: str) -> None:
    checks_cache.a_refused_crop_changes_nothing(family, HARDEST)


@pytest.mark.parametrize("family", FEW)
def test_a_cache_needs_its_handle(family: str) -> None:
    checks_cache.a_cache_needs_its_handle(family, HARDEST)


@pytest.mark.parametrize("name", ["pyramiddrop", "uniform_grid"])
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_instead_of_ids(family: str, name: str) -> None:
    modes.embeddings_instead_of_ids(family, HARD[name])


@pytest.mark.parametrize("name", ["uniform_grid", "average_pool"])
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_keep_what_ids_keep(family: str, name: str) -> None:
    modes.embeddings_keep_what_ids_keep(family, EASY[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_equals_the_masked_loss(family: str) -> None:
    modes.loss_equals_the_masked_loss(family, HARDEST)


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_come_back(family: str) -> None:
    modes.hidden_states_come_back(family, HARDEST)


@pytest.mark.parametrize("family", FEW)
def test_hidden_states_are_at_full_length(family: str) -> None:
    modes.hidden_states_are_logical(family, HARDEST)


@pytest.mark.parametrize("family", FEW)
def test_hidden_states_of_a_batch_equal_those_of_its_rows(family: str) -> None:
    modes.hidden_states_equal_those_of_rows(family, HARDEST)


@pytest.mark.parametrize("layer", range(6))
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl", "paligemma"])
def test_every_layer_may_be_the_first_to_drop(family: str, attn: str, layer: int) -> None:
    """Sliding and first full layers of Gemma 3, the layers that Qwen3-VL adds features after, and layer 0."""
    plugin = random_drop(keep_ratio=0.4, layer=layer)
    checks.generate_equals_masked_generate(family, attn, plugin, (1, 2))
    checks.drop_equals_mask(family, attn, plugin, (1, 2, 0), "right")


@pytest.mark.parametrize("family", FEW)
def test_a_plugin_before_and_one_inside_the_language_model(family: str) -> None:
    """Two writers of two resources work together, in either order."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0))
    plugins = [random_drop(keep_ratio=0.6), pyramiddrop(layers=(2, 4))]
    one, other = kit.attached(model, inputs, *plugins), kit.attached(model, inputs, *plugins[::-1])
    assert torch.equal(one.logits, other.logits)
    left = kit.survivors(one.handle, inputs)[-1] & kit.real(inputs)
    kit.same(one.logits[left], kit.reference_logits(model, inputs, plugins[0], one.handle)[left])
    counts = [int(mask.sum()) for mask in kit.survivors(one.handle, inputs)]
    assert counts[0] > counts[2] > counts[4]


def in_bfloat16() -> list[tuple[str, str]]:
    """Every method on the last two of the few families, which have the most parts, and in turns on the others."""
    first, last = FEW[:-2], FEW[-2:]
    made = [(family, name) for family in last for name in METHODS]
    return made + [(first[place % len(first)], name) for place, name in enumerate(METHODS)]


@pytest.mark.parametrize(("family", "name"), in_bfloat16())
def test_bfloat16_runs(family: str, name: str) -> None:
    """In bfloat16 keeping everything is exact, and the survivors' masked run is met to bfloat16's three digits."""
    model = kit.model_of(family, "sdpa", torch.bfloat16)
    inputs = tiny_inputs(family, (1, 2)).to(dtype=torch.bfloat16)
    bare = kit.once(kit.bare, model, inputs)
    if name in KEEP_ALL:
        assert torch.equal(kit.attached(model, inputs, KEEP_ALL[name]).logits, bare)
    run = kit.attached(model, inputs, HARD[name])
    assert run.logits.dtype == torch.bfloat16
    left = kit.survivors(run.handle, inputs)[-1] & kit.real(inputs)
    want = kit.reference_logits(model, inputs, HARD[name], run.handle)
    kit.same(run.logits[left].float(), want[left].float(), relative=0.15)
    assert (run.logits - want)[left].float().abs().mean() < (run.logits - bare)[left].float().abs().mean() / 2


# ------------------------------------------------------------------ wrappers


def test_a_pipeline() -> None:
    modes.wrapped_equals_plain("llava", HARDEST, Pipe, lambda pipe: pipe.model, tiny_vlm("llava"))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_a_model_with_lora(family: str, name: str) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "k_proj", "down_proj"], init_lora_weights=False, r=4)

    def wrap(model: nn.Module) -> Any:
        torch.manual_seed(0)
        return peft.get_peft_model(model, config).eval()

    modes.wrapped_equals_plain(family, HARD[name], wrap, lambda wrapped: wrapped, tiny_vlm(family))


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
def test_an_offloaded_model(name: str) -> None:
    accelerate = pytest.importorskip("accelerate")

    def wrap(model: nn.Module) -> Any:
        return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))

    modes.wrapped_equals_plain("llava", HARD[name], wrap, lambda wrapped: wrapped, tiny_vlm("llava"))


# ------------------------------------------------------------------ what is counted


@pytest.mark.parametrize(
    "plugin",
    [fastv(keep_ratio=0.3), uniform_grid(keep_ratio=0.3), random_drop(layer=3, keep_ratio=0.2)],
    ids=lambda plugin: plugin.name,
)
@pytest.mark.parametrize("family", FEW)
def test_flops_are_those_measured(family: str, plugin: Plugin) -> None:
    checks.flops_are_measured(family, plugin)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_unneeded_mask_or_cache_changes_nothing(family: str, attn: str) -> None:
    checks.mask_and_cache_do_not_matter(family, attn, HARDEST)


@pytest.mark.parametrize("family", FEW)
def test_rows_of_a_cache_may_be_reordered(family: str) -> None:
    checks_cache.cache_rows_follow(family, HARDEST)
