"""The page in a real browser: Chromium without a screen. `make test-browser` runs these, and nothing else does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.demo.conftest import address, desk

__all__ = ["address", "desk"]
# without the last three, the browser looks for its maker's servers at every start
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_WIDTH, _HEIGHT = 1320, 980
_LONGEST_MS = 90_000


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium; a browser of another name by the variable CHROMIUM."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if found is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=found, args=list(_FLAGS))
        yield made
        made.close()


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Callable[[str], Any]]:
    """Open the page at a tab. Afterwards nothing may have failed in it, and nothing been asked of other machines."""
    page = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT})
    page.set_default_timeout(_LONGEST_MS)
    failed: list[str] = []
    elsewhere: list[str] = []
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on("request", lambda one: None if _here(one.url, address) else elsewhere.append(one.url))

    def opened(name: str) -> Any:
        page.goto(address)
        page.get_by_role("tab", name=name, exact=True).click()
        return page

    yield opened
    page.close()
    assert not failed
    assert not elsewhere, "the page works offline"


def _here(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


@pytest.fixture
def screenshot(request: pytest.FixtureRequest) -> Callable[[Any, str], None]:
    """Keep what the page looks like, where `--screenshots DIR` says so."""
    folder: Path | None = request.config.getoption("--screenshots")

    def take(page: Any, name: str) -> None:
        # charts grow after their data came
        page.wait_for_timeout(3500)
        picture = page.screenshot(full_page=True)
        assert len(picture) > 20_000, "an empty page"
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"page-{name}.png").write_bytes(picture)

    return take


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", type=Path, help="Folder for pictures of every tab.")
