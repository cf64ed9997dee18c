"""Selections equal their definitions on every family."""

import pytest

from tests.contracts import checks_sets as checks
from tests.contracts.cases import EASY, HARD
from tests.tiny import FAMILIES, VIDEO_FAMILIES
from vlm_eff.core.plugin import Plugin
from vlm_eff.tokens import random_drop, uniform_grid

PADS = ["left", "right"]
VIDEOS = [(family, kind) for family in VIDEO_FAMILIES for kind in (True, "mixed")]
ROWS = [(1,), (2,), (1, 2, 0), (3, 1)]


@pytest.mark.parametrize(
    ("layer", "ratio", "attn", "pad"), [(1, 0.3, "sdpa", "left"), (3, 0.5, "sdpa", "right"), (2, 0.37, "eager", "left")]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_fastv_keeps_what_the_layer_before_looks_at(family: str, layer: int, ratio: float, attn: str, pad: str) -> None:
    checks.fastv_keeps_its_definition(family, attn, layer, ratio, pad)


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize(
    ("layers", "ratio", "attn"), [((1, 2, 4), 0.6, "sdpa"), ((2, 3), 0.37, "sdpa"), ((0, 5), 0.5, "eager")]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_pyramiddrop_keeps_what_its_own_layers_would_look_at(
    family: str, layers: tuple[int, ...], ratio: float, attn: str, pad: str
) -> None:
    checks.pyramiddrop_keeps_its_definition(family, attn, layers, ratio, pad)


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize(
    ("layers", "ratio", "stride", "attn"),
    [((1, 3), 0.6, 4, "sdpa"), ((2, 3), 0.3, 2, "eager"), ((3, 5), 0.5, 3, "sdpa")],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_feather_keeps_the_grid_and_what_unrotated_attention_looks_at(
    family: str, layers: tuple[int, int], ratio: float, stride: int, attn: str, pad: str
) -> None:
    checks.feather_keeps_its_definition(family, attn, layers, ratio, stride, pad)


def test_feather_does_not_see_positions() -> None:
    checks.feather_ignores_positions()


@pytest.mark.parametrize("plugin", [EASY["average_pool"], HARD["average_pool"]], ids=["easy", "hard"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pooled_windows_cover_every_image_token_once(family: str, plugin: Plugin) -> None:
    checks.pooling_keeps_seats(family, plugin)


@pytest.mark.parametrize(("family", "video"), VIDEOS)
def test_pooled_windows_cover_every_video_token_once(family: str, video: bool | str) -> None:
    checks.pooling_keeps_seats(family, HARD["average_pool"], video)


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("rows", [(1,), (1, 2, 0), (3, 1, 1)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_image_tokens_are_found_where_they_are(family: str, rows: tuple[int, ...], pad: str) -> None:
    checks.spans_are_the_true_layout(family, rows, pad=pad)


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize(("family", "video"), VIDEOS)
def test_video_tokens_are_found_where_they_are(family: str, video: bool | str, rows: tuple[int, ...]) -> None:
    checks.spans_are_the_true_layout(family, rows, video)


def test_frames_closer_than_a_time_step_are_told_apart() -> None:
    checks.close_frames_are_told_apart()


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_random_choice_depends_on_seed_and_prompt_alone(family: str) -> None:
    checks.random_choice_is_the_prompts(family)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_beams_share_one_random_choice(family: str) -> None:
    checks.beams_share_one_choice(family)


@pytest.mark.parametrize(
    "plugin",
    [random_drop(positions="reindexed"), uniform_grid(keep_ratio=0.2, positions="reindexed")],
    ids=["random", "uniform"],
)
def test_reindexed_before_the_language_model_equals_a_shorter_prompt(plugin: Plugin) -> None:
    checks.reindexed_entry_equals_a_shorter_prompt(plugin)


def test_reindexed_pyramiddrop_equals_the_official_loop() -> None:
    checks.reindexed_pyramid_equals_the_official_loop()
