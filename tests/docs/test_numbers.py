"""Every measured number in README and docs comes from a record, or says where it was published or who chose it."""

import pytest

from tests.docs.blocks import PAGES, ROOT, page_name
from tests.docs.records import Unit, shown, unfounded, units_of, values

UNITS = [unit for path in PAGES for unit in units_of(page_name(path), path.read_text(encoding="utf-8"))]
WITH_NUMBERS = [unit for unit in UNITS if unit.numbers()]
SENTENCE = "With 10 evaluations it lies 48.1 dB away."
MARK = "<!-- record: diffusion_quality_small_unet.json result.rows[forecast:evaluations=10].psnr -->"


def test_every_number_comes_from_somewhere() -> None:
    wrong = [problem for unit in UNITS for problem in unfounded(unit)]
    assert not wrong, "\n".join(["see tests/docs/records.py for what to write behind a number", *wrong])


@pytest.mark.parametrize("unit", WITH_NUMBERS, ids=str)
def test_a_changed_digit_is_noticed(unit: Unit) -> None:
    for number, _ in unit.numbers():
        other = number[:-1] + str((int(number[-1]) + 5) % 10)
        changed = Unit(unit.page, unit.line, unit.text.replace(number, other), unit.marks)
        assert unfounded(changed), f"{unit}: {other} in place of {number} goes unnoticed"


@pytest.mark.parametrize(
    "text",
    [
        SENTENCE,
        SENTENCE.replace("48.1", "48.2") + MARK,
        SENTENCE + MARK + MARK.replace(".psnr", ".frechet"),
        SENTENCE + MARK.replace("[forecast:evaluations=10]", ""),
        "It is 2.5 times as fast. <!-- published: 2.5 in a paper -->",
        "It takes 1.1 GB. <!-- counted: 1.1 = 3 * 4 / 10 -->",
        "| a | b |\n|---|---|\n| 1 | 73.5% |",
        "- It keeps 90 % of the answers.",
    ],
)
def test_what_has_no_source_is_noticed(text: str) -> None:
    assert [problem for unit in units_of("page.md", text) for problem in unfounded(unit)]


def test_what_has_one_passes() -> None:
    text = f"""{SENTENCE}
{MARK}

The gain is 14.6 dB, of 576 tokens at `keep_ratio=0.25`, on torch 2.15.0 and LLaVA-1.5-7B.
{MARK.replace(" -->", " - result.rows[forecast:evaluations=10,order=0].psnr -->")}

| a | b |
|---|---|
| kept | 25 % |

<!-- setting: 25 -->
"""
    units = list(units_of("page.md", text))
    assert len(units) == 3 and not [problem for unit in units for problem in unfounded(unit)]


def test_values_are_read_as_they_are_shown() -> None:
    assert shown("1,234", 1234.4) and not shown("1,234", 1234.6)
    assert shown("38.5", 0.3849, 0.01) and not shown("38.4", 0.3849, 0.01)
    assert shown("5.9", -0.0588, 0.01) and shown("3.6", 3578368, 1e6)
    ratio, share = "prefill.json result[pyramiddrop:keep_ratio=0.5].n_eq", "prefill.json config.visual_tokens"
    assert values(f"{ratio} / config.visual_tokens") == [values(ratio)[0] / values(share)[0]]


def test_pages_are_looked_at() -> None:
    assert {ROOT / unit.page for unit in UNITS} >= set(PAGES) and len(WITH_NUMBERS) > 30
