"""Every method of the cache: exact where it keeps everything, equal to hiding where it evicts, and nothing left behind.

Every method meets every decoder of `FOUR` in the properties that are easiest to lose (P1, P4, P8); in the others the
methods walk through the four, so that each property meets each decoder and each method.
"""

from typing import Any

import pytest
import torch
from transformers import StaticCache

from tests.contracts import checks_kv, checks_kv_cache, checks_kv_sets, kit
from tests.contracts.cases import BYPASS_CASES
from tests.contracts.cases import HARD as TOKENS
from tests.contracts.checks_life import refused
from tests.contracts.kv_cases import EASY, HARD, KV_CASES, LOGIT_CASES
from tests.contracts.kv_kit import FOUR
from tests.contracts.kv_promises import PROMISES, having, keeps_everything, promise
from tests.tiny import FAMILIES, TinyInputs
from vlm_eff import attach, methods
from vlm_eff.core.errors import CapabilityError, ConflictError, StateError

METHODS = tuple(KV_CASES)
# looks at attention, keeps other entries in every head, and has a window
HARDEST = HARD["snapkv"]
PAIRS = [(family, name) for family in FOUR for name in METHODS]


def walk(names: Any, start: int = 0) -> list[tuple[str, str]]:
    """(family, method) with each method once."""
    return [(FOUR[(METHODS.index(name) + start) % len(FOUR)], name) for name in names]


# one for each way of storing entries: the engine does the rest alike for all
KINDS = [
    name
    for name in ("snapkv", "streaming_llm", "look_m", "kivi", "zipvl_kv", "cross_modal_low_rank")
    if name in METHODS
]
MODES: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 2, "steps": 5},
    "beams-returned": {"num_beams": 3, "num_return_sequences": 2, "steps": 5},
    "samples": {"num_return_sequences": 2, "do_sample": True, "steps": 4},
    "chunks": {"prefill_chunk_size": 10, "steps": 4},
}


def test_cases_cover_every_method_of_the_cache() -> None:
    assert {*KV_CASES, *LOGIT_CASES} == {name for name, method in methods().items() if method.room == "kvcache"}
    assert set(PROMISES) <= set(KV_CASES)
    assert {plugin.name for pair in KV_CASES.values() for plugin in pair} == set(KV_CASES)
    # what evicts can keep everything
    assert {name for name in KV_CASES if keeps_everything(name) is None} <= set(having("rewrites"))


@pytest.mark.parametrize(("family", "name"), [pair for pair in PAIRS if keeps_everything(pair[1])])
def test_keeping_everything_changes_no_bit(family: str, name: str) -> None:
    plugin = keeps_everything(name)
    assert plugin is not None
    attn = "eager" if (family, name) in walk([name]) else "sdpa"
    checks_kv.kv_keeping_everything_changes_no_bit(family, attn, plugin)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_evicting_equals_hiding(family: str, name: str) -> None:
    checks_kv.kv_evicting_equals_hiding(family, "sdpa", HARD[name], rewrites=promise(name).rewrites)


@pytest.mark.parametrize(("family", "name"), walk(METHODS, 1))
def test_evicting_equals_hiding_in_eager_attention(family: str, name: str) -> None:
    checks_kv.kv_evicting_equals_hiding(family, "eager", HARD[name], (1, 2, 0), promise(name).rewrites, steps=4)


@pytest.mark.parametrize(("family", "name"), walk(METHODS, 2))
def test_evicting_equals_hiding_alone_and_with_defaults(family: str, name: str) -> None:
    checks_kv.kv_evicting_equals_hiding(family, "sdpa", HARD[name], (1,), promise(name).rewrites, steps=4)
    rewrites = promise(name).rewrites
    checks_kv.kv_defaults_equal_hiding(family, EASY[name], rewrites)


# every mode, and two of them for each method
IN_MODES = [
    (family, name, mode)
    for index, (family, name) in enumerate(walk(METHODS, 3))
    for mode in list(MODES)[index % 2 :: 2]
]


@pytest.mark.parametrize(("family", "name", "mode"), IN_MODES)
def test_evicting_equals_hiding_in_every_mode(family: str, name: str, mode: str) -> None:
    checks_kv.kv_evicting_equals_hiding(family, "sdpa", HARD[name], rewrites=promise(name).rewrites, **MODES[mode])


@pytest.mark.parametrize(("family", "name"), walk(METHODS))
def test_candidates_that_are_cropped(family: str, name: str) -> None:
    checks_kv.kv_candidates_equal_hiding(family, HARD[name], promise(name).rewrites)


@pytest.mark.parametrize(("family", "name"), walk(METHODS, 2))
def test_candidates_are_no_prompt(family: str, name: str) -> None:
    checks_kv.kv_candidates_are_no_prompt(family, HARD[name])


@pytest.mark.parametrize(("family", "name"), walk(METHODS, 1))
def test_a_second_question(family: str, name: str) -> None:
    checks_kv.kv_turns_equal_hiding(family, "sdpa", HARD[name], promise(name).rewrites)


@pytest.mark.parametrize(("family", "name"), walk(METHODS, 2))
def test_a_second_image(family: str, name: str) -> None:
    checks_kv.kv_second_image_equals_hiding(family, HARD[name], promise(name).rewrites)


@pytest.mark.parametrize("other", ["fastv", "pyramiddrop", "average_pool"])
@pytest.mark.parametrize(("family", "name"), walk(KINDS, 3))
def test_beside_tokens_that_go(family: str, name: str, other: str) -> None:
    checks_kv.kv_beside_tokens_that_go(family, "sdpa", HARD[name], TOKENS[other], promise(name).rewrites)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_a_batch_equals_its_rows(family: str, name: str) -> None:
    checks_kv.kv_batch_equals_rows(family, HARD[name], relative=promise(name).relative)


@pytest.mark.parametrize(("family", "name"), walk(METHODS))
def test_eager_equals_sdpa(family: str, name: str) -> None:
    checks_kv.kv_eager_equals_sdpa(family, HARD[name], promise(name).relative)


@pytest.mark.parametrize(("family", "name"), walk(having("chunks"), 1))
def test_chunks_equal_one_prompt(family: str, name: str) -> None:
    checks_kv.kv_chunks_equal_one_prompt(family, HARD[name], promise(name).relative)


# ------------------------------------------------------------------ sets


@pytest.mark.parametrize(("family", "name"), walk(having("budget"), 2))
def test_the_budget_is_met(family: str, name: str) -> None:
    checks_kv_sets.kv_budget_is_met(family, HARD[name], promise(name))


@pytest.mark.parametrize(("family", "name"), walk(METHODS, 3))
def test_protected_entries_stay(family: str, name: str) -> None:
    checks_kv_sets.kv_protected_entries_stay(family, HARD[name], promise(name))


@pytest.mark.parametrize(("family", "name"), walk([name for name in METHODS if not promise(name).rewrites]))
def test_keys_keep_their_phase(family: str, name: str) -> None:
    checks_kv_sets.kv_keys_keep_their_phase(family, HARD[name])


@pytest.mark.parametrize(("family", "name"), walk(having("definition"), 1))
def test_the_set_is_the_definition(family: str, name: str) -> None:
    definition = promise(name).definition
    assert definition is not None
    checks_kv_sets.kv_set_is_the_definition(family, HARD[name], definition)


@pytest.mark.parametrize(("family", "name"), walk(having("needle"), 2))
def test_a_needle_is_kept(family: str, name: str) -> None:
    checks_kv_sets.kv_needle_is_kept(family, HARD[name], promise(name).needle)


@pytest.mark.parametrize(("family", "name"), walk(having("ties"), 3))
def test_ties_go_to_the_lower_index(family: str, name: str) -> None:
    checks_kv_sets.kv_ties_go_to_the_lower_index(family, HARD[name])


# ------------------------------------------------------------------ the cache in the user's hands


@pytest.mark.parametrize("how", checks_kv_cache.ROWS)
@pytest.mark.parametrize(("family", "name"), walk(KINDS))
def test_rows_of_the_cache_follow(family: str, name: str, how: str) -> None:
    checks_kv_cache.kv_rows_follow(family, HARD[name], how, promise(name).rewrites)


@pytest.mark.parametrize(("family", "name"), walk(METHODS, 1))
def test_a_crop_forgets_the_newest(family: str, name: str) -> None:
    checks_kv_cache.kv_crop_forgets_the_newest(family, HARD[name], promise(name).rewrites)


@pytest.mark.parametrize(("family", "name"), walk(KINDS, 2))
def test_a_crop_shortens_a_prompt(family: str, name: str) -> None:
    checks_kv_cache.kv_crop_shortens_a_prompt(family, HARD[name], promise(name).rewrites)


@pytest.mark.parametrize(("family", "name"), walk(KINDS, 2))
def test_a_reset_forgets_everything(family: str, name: str) -> None:
    checks_kv_cache.kv_reset_forgets_everything(family, HARD[name])


@pytest.mark.parametrize(("family", "name"), walk(KINDS, 3))
def test_copies_of_a_prefix_part(family: str, name: str) -> None:
    checks_kv_cache.kv_copies_part(family, HARD[name])


@pytest.mark.parametrize(("family", "name"), walk(METHODS, 2))
def test_reported_bytes_are_live(family: str, name: str) -> None:
    checks_kv_cache.kv_reported_bytes_are_live(family, HARD[name])


@pytest.mark.parametrize(("family", "name"), walk(KINDS[::3]))
def test_evicted_memory_is_freed(family: str, name: str) -> None:
    checks_kv_cache.kv_evicted_memory_is_freed(family, HARD[name])


@pytest.mark.parametrize(("family", "name"), walk(METHODS, 3))
def test_groups_share_entries(family: str, name: str) -> None:
    checks_kv_cache.kv_groups_share_entries(family, HARD[name], promise(name).queries)


# ------------------------------------------------------------------ attach and detach


@pytest.mark.parametrize(("family", "name"), walk(METHODS))
def test_detach_restores(family: str, name: str) -> None:
    attn = "eager" if METHODS.index(name) % 2 else "sdpa"
    checks_kv_cache.kv_detach_restores(family, attn, HARD[name])


@pytest.mark.parametrize(("family", "name"), walk(KINDS, 1))
def test_a_pause_is_bare(family: str, name: str) -> None:
    checks_kv_cache.kv_pause_is_bare(family, HARD[name])


@pytest.mark.parametrize(("family", "name"), walk(KINDS, 2))
def test_a_cache_needs_its_handle(family: str, name: str) -> None:
    checks_kv_cache.kv_cache_needs_its_handle(family, HARD[name])


@pytest.mark.parametrize(("family", "name"), walk(KINDS, 3))
def test_an_error_in_a_step_is_survived(family: str, name: str) -> None:
    checks_kv_cache.kv_error_in_a_step_is_survived(family, HARD[name])


@pytest.mark.parametrize("name", METHODS)
def test_tensors_stay_on_their_device(name: str) -> None:
    checks_kv_cache.kv_tensors_stay_on_their_device(HARD[name])


@pytest.mark.parametrize("name", KINDS)
def test_threads_do_not_meet(name: str) -> None:
    # Qwen keeps the place of its last prompt on the model: two threads cannot share it, with or without a plugin
    checks_kv_cache.kv_threads_do_not_meet("llava", HARD[name])


# ------------------------------------------------------------------ layers that slide


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_full_layers_between_sliding_ones(attn: str) -> None:
    checks_kv.kv_evicting_equals_hiding("gemma3", attn, HARDEST, steps=kit.STEPS + 4)
    checks_kv.kv_turns_equal_hiding("gemma3", attn, HARDEST)
    checks_kv.kv_beside_tokens_that_go("gemma3", attn, HARDEST, TOKENS["pyramiddrop"])


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {*FOUR, "gemma3"}))
def test_every_other_family(family: str) -> None:
    checks_kv.kv_evicting_equals_hiding(family, "sdpa", HARDEST, (1, 2, 0), steps=4)


@pytest.mark.parametrize("name", ["zipvl_attention"])
def test_beside_tokens_that_bypass(name: str) -> None:
    checks_kv.kv_beside_tokens_that_go("llava", "sdpa", HARDEST, BYPASS_CASES[name][1])


# ------------------------------------------------------------------ refusals


def _prefilled(model: Any, inputs: TinyInputs) -> None:
    cache = kit.forward(model, inputs, use_cache=True).past_key_values
    with attach(model, HARDEST):
        more = {"input_ids": inputs["input_ids"][:, :1], "position_ids": torch.tensor([[90]])}
        kit.forward(model, more, past_key_values=cache, use_cache=True)


def _static(model: Any, inputs: TinyInputs) -> None:
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=128)
    with attach(model, HARDEST):
        kit.forward(model, inputs, past_key_values=cache, use_cache=True)


REFUSED: dict[str, tuple[type[Exception], str, Any]] = {
    "static cache": (CapabilityError, "StaticCache", _static),
    "a cache that somebody else filled": (StateError, "filled without", _prefilled),
    "two methods of the cache": (
        ConflictError, "both change", lambda model, _: attach(model, HARDEST, HARD["random_evict"])
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused(case: str) -> None:
    error, match, act = REFUSED[case]
    refused("llava", error, match, act)
