"""Every other tab in a browser, from its defaults to charts and pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Tab = Callable[[str], Any]
Shot = Callable[[Any, str], None]


@pytest.mark.parametrize(("title", "name", "charts"), [("Video", "video", 3), ("KV cache", "kv", 3)])
def test_a_question_is_answered_twice_and_drawn(tab: Tab, screenshot: Shot, title: str, name: str, charts: int) -> None:
    page = tab(title)
    page.locator(f"#{name}-ask").click()
    page.wait_for_function(f"document.querySelector('#{name}-answer textarea').value.length > 0")
    panel = page.get_by_role("tabpanel").filter(has=page.locator(f"#{name}-ask"))
    panel.get_by_text("prefill FLOPs").first.wait_for()
    assert panel.locator(".matplotlib img, img[alt*='plot']").count() == charts
    screenshot(page, name)


def test_methods_are_compared_at_one_budget(tab: Tab, screenshot: Shot) -> None:
    page = tab("Compare")
    page.locator("#compare-ask").click()
    page.locator("#compare-code").get_by_text("sizes_of").first.wait_for()
    panel = page.get_by_role("tabpanel").filter(has=page.locator("#compare-ask"))
    for name in ("pyramiddrop", "visionzip", "random_drop"):
        panel.get_by_text(name).first.wait_for()
    screenshot(page, "compare")


def test_two_pictures_are_drawn(tab: Tab, screenshot: Shot) -> None:
    pytest.importorskip("diffusers")
    page = tab("Diffusion")
    page.locator("#diffusion-draw").click()
    page.locator("#diffusion-code").get_by_text("attach").first.wait_for()
    panel = page.get_by_role("tabpanel").filter(has=page.locator("#diffusion-draw"))
    assert panel.locator("img").count() >= 4
    screenshot(page, "diffusion")
