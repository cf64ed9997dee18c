"""The image tab in a browser: from a question to pictures of what is left, and from a bad file to a sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_a_question_is_answered_twice(tab: Callable[[str], Any], screenshot: Callable[[Any, str], None]) -> None:
    page = tab("Image")
    page.locator("#image-ask").click()
    page.wait_for_function("document.querySelector('#image-answer textarea').value.length > 0")
    page.get_by_text("handle.stats()").wait_for()
    page.get_by_text("by stage layer 2: 144 -> 72").wait_for()
    bare = page.get_by_label("Bare model").input_value()
    assert bare and page.locator("#image-answer textarea").input_value()
    drawn = page.locator("#image-kept img").first
    last = drawn.get_attribute("src")
    page.locator("#image-layer input[type=number]").fill("0")
    page.locator("#image-layer input[type=number]").press("Enter")
    page.wait_for_function(
        "before => document.querySelector('#image-kept img').getAttribute('src') !== before", arg=last
    )
    page.locator("#image-layer input[type=number]").fill("4")
    page.locator("#image-layer input[type=number]").press("Enter")
    screenshot(page, "image")


def test_knobs_write_the_spec(tab: Callable[[str], Any]) -> None:
    page = tab("Image")
    page.get_by_text("Choose a method and turn its knobs").first.click()
    page.get_by_label("Method").first.fill("visionzip")
    page.get_by_role("option", name=re.compile("^visionzip")).click()
    page.get_by_label("keep ratio").fill("0.2")
    page.get_by_role("button", name="Add visionzip with these settings").click()
    page.wait_for_function("document.querySelector('#image-specs textarea').value.includes('visionzip:keep_ratio=0.2')")


def test_a_broken_file_is_one_sentence(tab: Callable[[str], Any], tmp_path: Path) -> None:
    (tmp_path / "letter.png").write_text("no picture at all")
    page = tab("Image")
    page.locator("#image-files button[aria-label='Clear'], #image-files [title='Clear']").first.click()
    page.locator("#image-files input[type=file]").set_input_files(str(tmp_path / "letter.png"))
    page.get_by_text("letter.png cannot be read as a picture").first.wait_for()
