"""Methods that act on videos alone: on every video family, beside images, in batches and while decoding."""

import pytest

from tests.contracts import checks, checks_video
from tests.contracts.cases import EASY, HARD, VIDEO_METHODS
from tests.tiny import FAMILIES, VIDEO_FAMILIES

NAMES = sorted(VIDEO_METHODS)


@pytest.mark.images
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_images_are_left_alone(family: str, name: str) -> None:
    checks_video.images_are_left_alone(family, HARD[name])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_beside_images_only_video_tokens_go(family: str, name: str) -> None:
    checks_video.only_video_tokens_go(family, HARD[name])


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_dropping_equals_masking_beside_images(family: str, name: str, pad: str) -> None:
    checks.drop_equals_mask(family, "sdpa", HARD[name], (2, 3, 0), pad, "mixed")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_dropping_equals_masking_with_defaults(family: str, name: str) -> None:
    checks.drop_equals_mask(family, "sdpa", EASY[name])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_decoding_equals_masked_decoding_beside_images(family: str, name: str) -> None:
    checks.generate_equals_masked_generate(family, "sdpa", HARD[name], (2, 3, 0), "mixed")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_a_mixed_batch_equals_its_rows(family: str, name: str) -> None:
    checks.batch_equals_rows(family, HARD[name], (2, 3, 0), video="mixed")
