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
    VIDEO_METHODS,
)
from tests.contracts.tower_cases import TOWER_CASES, TOWER_NOTHING
from tests.tiny import FAMILIES, VIDEO_FAMILIES
from vlm_eff import methods

METHODS = tuple(METHOD_CASES)
# plain, newlines, three-axis positions with DeepStack, sliding windows with bidirectional images
FEW = ("llava", "llava_next", "qwen3_vl", "gemma3")
HARDEST_FAMILIES = FEW[2:]
PAIRS = [(family, name) for family in FAMILIES for name in METHODS]
COUNTED = [(family, name) for family, name in PAIRS if name not in ADD_TOKENS]
BATCHES = {"one": ((1,), "left"), "ragged-left": ((1, 2, 0), "left"), "ragged-right": ((1, 2, 0), "right")}
# every pair is checked on a ragged batch padded left, with sdpa; these are the other forms of that check
FORMS = [(attn, batch) for attn in ("sdpa", "eager") for batch in BATCHES if (attn, batch) != ("sdpa", "ragged-left")]
FEW_PAIRS = [(family, name) for family, name in PAIRS if family in FEW]
VIDEOS = [(family, kind) for family in VIDEO_FAMILIES for kind in (True, "mixed")]


def spread() -> list[tuple[str, str, str, str]]:
    """All forms on two families; elsewhere one a pair, so that every method and every family meets every form."""
    made = [(*pair, *form) for pair in FEW_PAIRS if pair[0] in HARDEST_FAMILIES for form in FORMS]
    for row, family in enumerate(family for family in FAMILIES if family not in HARDEST_FAMILIES):
        made += [(family, name, *FORMS[(row + place) % len(FORMS)]) for place, name in enumerate(METHODS)]
    return made


def in_turns() -> list[tuple[str, str]]:
    """Each method on one of the few families, which take turns."""
    return [
        ("qwen3_vl" if name in VIDEO_METHODS else FEW[place % len(FEW)], name) for place, name in enumerate(METHODS)
    ]


def test_every_method_and_every_family_meets_every_form() -> None:
    for place, wanted in ((0, FAMILIES), (1, METHODS)):
        met = {(case[place], case[2:]) for case in spread()}
        assert met == {(one, form) for one in wanted for form in FORMS}


def test_every_method_has_its_turn_on_a_family_that_has_what_it_drops() -> None:
    turns = in_turns()
    assert [name for _, name in turns] == list(METHODS)
    assert {family for family, name in turns if name not in VIDEO_METHODS} == set(FEW)
    assert all(family in VIDEO_FAMILIES for family, name in turns if name in VIDEO_METHODS)


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


@pytest.mark.parametrize(
    ("family", "attn"), [*((family, "sdpa") for family in FAMILIES), *((family, "eager") for family in FEW)]
)
@pytest.mark.parametrize("name", KEEP_ALL)
def test_keeping_everything_changes_no_bit(family: str, name: str, attn: str) -> None:
    checks.keep_all_is_bit_identical(family, attn, KEEP_ALL[name])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_dropping_equals_masking(family: str, name: str) -> None:
    checks.drop_equals_mask(family, "sdpa", HARD[name])


@pytest.mark.parametrize(("family", "name", "attn", "batch"), spread())
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


@pytest.mark.parametrize(
    ("family", "name", "attn"), [*((*pair, "sdpa") for pair in PAIRS), *((*pair, "eager") for pair in in_turns())]
)
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


@pytest.mark.parametrize(("family", "name"), FEW_PAIRS)
def test_dropping_equals_masking_in_float64(family: str, name: str) -> None:
    checks.double_equals_masked_double(family, HARD[name])


@pytest.mark.parametrize(
    ("family", "name", "pad"), [*((*pair, "left") for pair in PAIRS), *((*pair, "right") for pair in in_turns())]
)
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
    # more steps than the sliding window is wide, where there is one
    checks.cache_holds_what_is_left(family, HARD[name], steps=10 if family == "gemma3" else 3)


@pytest.mark.parametrize(("family", "name"), COUNTED)
def test_report_counts_the_survivors(family: str, name: str) -> None:
    checks.report_is_measured(family, HARD[name])
