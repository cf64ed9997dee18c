"""Keep-all is bit-identical, dropping equals masking, eager equals sdpa, a batch equals its rows."""

import pytest

from tests.contracts import checks
from tests.contracts.cases import (
    ADD_TOKENS,
    BYPASS_CASES,
    EASY,
    HARD,
    HARDEST,
    KEEP_ALL,
    METHOD_CASES,
    NEVER_KEEP_ALL,
    SPARSE_CASES,
)
from tests.contracts.tower_cases import TOWER_CASES, TOWER_NOTHING
from tests.tiny import FAMILIES, VIDEO_FAMILIES
from vlm_eff import methods

METHODS = tuple(METHOD_CASES)
# plain, newlines, three-axis positions with DeepStack, sliding windows with bidirectional images
FEW = ("llava", "llava_next", "qwen3_vl", "gemma3")
PAIRS = [(family, name) for family in FAMILIES for name in METHODS]
COUNTED = [(family, name) for family, name in PAIRS if name not in ADD_TOKENS]
BATCHES = {"one": ((1,), "left"), "ragged-left": ((1, 2, 0), "left"), "ragged-right": ((1, 2, 0), "right")}
VIDEOS = [(family, kind) for family in VIDEO_FAMILIES for kind in (True, "mixed")]


def test_cases_cover_every_method() -> None:
    assert set(METHOD_CASES) == set(KEEP_ALL) | NEVER_KEEP_ALL
    # every method is in exactly one of the tables
    assert sorted([*METHOD_CASES, *BYPASS_CASES, *SPARSE_CASES, *TOWER_CASES]) == [
        name for name, method in methods().items() if method.room == "tokens"
    ]
    assert set(TOWER_CASES) == set(TOWER_NOTHING)
    assert not set(KEEP_ALL) & NEVER_KEEP_ALL
    assert set(METHOD_CASES) >= ADD_TOKENS
    assert all(plugin.name == name for name, pair in (METHOD_CASES | TOWER_CASES).items() for plugin in pair)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", KEEP_ALL)
@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_changes_no_bit(family: str, name: str, attn: str) -> None:
    checks.keep_all_is_bit_identical(family, attn, KEEP_ALL[name])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_dropping_equals_masking(family: str, name: str) -> None:
    checks.drop_equals_mask(family, "sdpa", HARD[name])


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_dropping_equals_masking_in_every_batch(family: str, name: str, attn: str, batch: str) -> None:
    checks.drop_equals_mask(family, attn, HARD[name], *BATCHES[batch])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", FEW)
def test_dropping_equals_masking_with_defaults(family: str, name: str) -> None:
    checks.drop_equals_mask(family, "sdpa", EASY[name])


@pytest.mark.parametrize("name", ["pyramiddrop", "feather", "average_pool"])
@pytest.mark.parametrize(("family", "video"), VIDEOS)
def test_dropping_equals_masking_on_video(family: str, video: bool | str, name: str) -> None:
    checks.drop_equals_mask(family, "sdpa", HARD[name], (1, 2, 0), "left" if video is True else "right", video)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_decoding_equals_masked_decoding(family: str, name: str, attn: str) -> None:
    checks.generate_equals_masked_generate(family, attn, HARD[name])


@pytest.mark.parametrize("name", METHODS)
def test_decoding_equals_masked_decoding_with_defaults(name: str) -> None:
    checks.generate_equals_masked_generate("qwen2_vl", "sdpa", EASY[name])


@pytest.mark.parametrize(("family", "video"), VIDEOS)
def test_decoding_equals_masked_decoding_on_video(family: str, video: bool | str) -> None:
    checks.generate_equals_masked_generate(family, "sdpa", HARDEST, (1, 2, 0), video)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_eager_equals_sdpa(family: str, name: str) -> None:
    checks.eager_equals_sdpa(family, HARD[name])


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_dropping_equals_masking_in_float64(family: str, name: str) -> None:
    checks.double_equals_masked_double(family, HARD[name])


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_a_batch_equals_its_rows(family: str, name: str, pad: str) -> None:
    checks.batch_equals_rows(family, HARD[name], pad=pad)


@pytest.mark.parametrize("name", ["pyramiddrop", "uniform_grid", "average_pool"])
@pytest.mark.parametrize(("family", "video"), VIDEOS)
def test_a_video_batch_equals_its_rows(family: str, video: bool | str, name: str) -> None:
    checks.batch_equals_rows(family, HARD[name], video=video)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_only_image_tokens_are_dropped(family: str, name: str) -> None:
    checks.only_image_tokens_go(family, HARD[name])


@pytest.mark.parametrize(("family", "video"), VIDEOS)
def test_only_video_tokens_are_dropped(family: str, video: bool | str) -> None:
    checks.only_image_tokens_go(family, HARDEST, video)


@pytest.mark.parametrize(("family", "name"), COUNTED)
def test_cache_holds_what_is_left(family: str, name: str) -> None:
    # more steps than the sliding window is wide
    checks.cache_holds_what_is_left(family, HARD[name], steps=10)


@pytest.mark.parametrize(("family", "name"), COUNTED)
def test_report_counts_the_survivors(family: str, name: str) -> None:
    checks.report_is_measured(family, HARD[name])
