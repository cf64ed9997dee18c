"""The engine of the cache in every way of storing entries that it knows, whether a method uses it or not."""

from itertools import cycle

import pytest

from tests.contracts import checks_kv, checks_kv_cache, kit
from tests.contracts.cases import HARD as TOKENS
from tests.contracts.kv_kit import FOUR
from tests.contracts.kv_scripted import SCRIPTED

ATTENTIONS = ("sdpa", "eager")
WALK = [
    (name, FOUR[(index + shift) % 4], attn)
    for index, name in enumerate(SCRIPTED)
    for shift, attn in enumerate(ATTENTIONS)
]
# every way of storing in one of the two, every decision in both
EACH = [(name, ATTENTIONS[index % 2]) for index, name in enumerate(SCRIPTED)]
# where a number lies between two codes, rounding decides
CODES = 2e-3


def rewrites(name: str) -> bool:
    """Whether stored entries are not what the model computed."""
    return SCRIPTED[name].merges or SCRIPTED[name].packs


def close(name: str) -> float:
    """How near two ways of computing the same have to come."""
    return CODES if SCRIPTED[name].packs else kit.RELATIVE


@pytest.mark.parametrize(("name", "family", "attn"), WALK)
def test_evicting_equals_hiding(name: str, family: str, attn: str) -> None:
    checks_kv.kv_evicting_equals_hiding(family, attn, SCRIPTED[name], (1, 2, 0), rewrites(name))


@pytest.mark.parametrize("name", SCRIPTED)
def test_beams(name: str) -> None:
    checks_kv.kv_evicting_equals_hiding("llava", "sdpa", SCRIPTED[name], rewrites=rewrites(name), num_beams=3)


@pytest.mark.parametrize("name", SCRIPTED)
def test_candidates_that_are_cropped(name: str) -> None:
    checks_kv.kv_candidates_equal_hiding("internvl", SCRIPTED[name], rewrites(name), 20)


@pytest.mark.parametrize(("name", "attn"), EACH)
def test_turns(name: str, attn: str) -> None:
    checks_kv.kv_turns_equal_hiding("qwen2_5_vl", attn, SCRIPTED[name], rewrites(name))


@pytest.mark.parametrize(("name", "attn"), EACH)
def test_a_second_image(name: str, attn: str) -> None:
    checks_kv.kv_second_image_equals_hiding("llava", SCRIPTED[name], rewrites(name), attn)


@pytest.mark.parametrize(("name", "attn"), EACH)
def test_beside_tokens_that_go(name: str, attn: str) -> None:
    checks_kv.kv_beside_tokens_that_go("qwen3_vl", attn, SCRIPTED[name], TOKENS["sparsevlm"], rewrites(name))


@pytest.mark.parametrize("name", SCRIPTED)
def test_a_batch_equals_its_rows(name: str) -> None:
    checks_kv.kv_batch_equals_rows("internvl", SCRIPTED[name], relative=close(name))


@pytest.mark.parametrize("name", SCRIPTED)
def test_eager_equals_sdpa(name: str) -> None:
    checks_kv.kv_eager_equals_sdpa("llava", SCRIPTED[name], close(name))


@pytest.mark.parametrize("name", SCRIPTED)
def test_chunks_equal_one_prompt(name: str) -> None:
    checks_kv.kv_chunks_equal_one_prompt("qwen2_5_vl", SCRIPTED[name], close(name))


@pytest.mark.parametrize(("name", "how"), list(zip(SCRIPTED, cycle(checks_kv_cache.ROWS), strict=False)))
def test_rows_follow(name: str, how: str) -> None:
    checks_kv_cache.kv_rows_follow("qwen3_vl", SCRIPTED[name], how, rewrites(name))


@pytest.mark.parametrize("name", SCRIPTED)
def test_crops(name: str) -> None:
    checks_kv_cache.kv_crop_forgets_the_newest("internvl", SCRIPTED[name], rewrites(name))


@pytest.mark.parametrize("name", ["uneven-steps", "packed-merged"])
def test_crops_of_prompts(name: str) -> None:
    checks_kv_cache.kv_crop_shortens_a_prompt("internvl", SCRIPTED[name], rewrites(name))


@pytest.mark.parametrize("name", SCRIPTED)
def test_copies_and_resets(name: str) -> None:
    checks_kv_cache.kv_copies_part("llava", SCRIPTED[name])
    checks_kv_cache.kv_reset_forgets_everything("llava", SCRIPTED[name])


@pytest.mark.parametrize("name", SCRIPTED)
def test_bytes(name: str) -> None:
    checks_kv_cache.kv_reported_bytes_are_live("qwen2_5_vl", SCRIPTED[name])
    checks_kv_cache.kv_groups_share_entries("qwen2_5_vl", SCRIPTED[name])


@pytest.mark.parametrize("name", SCRIPTED)
def test_tensors_stay_on_their_device(name: str) -> None:
    checks_kv_cache.kv_tensors_stay_on_their_device(SCRIPTED[name])


@pytest.mark.parametrize("name", ["uneven-merged", "packed-steps"])
def test_threads_do_not_meet(name: str) -> None:
    checks_kv_cache.kv_threads_do_not_meet("llava", SCRIPTED[name], 2)


@pytest.mark.parametrize(("name", "attn"), EACH)
def test_full_layers_between_sliding_ones(name: str, attn: str) -> None:
    checks_kv.kv_evicting_equals_hiding("gemma3", attn, SCRIPTED[name], (1, 2, 0), rewrites(name))
