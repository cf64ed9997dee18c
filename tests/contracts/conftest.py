"""Every contract of a method that acts on videos alone is checked with videos in place of the images."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pytest

from tests import tiny
from tests.contracts.cases import VIDEO_METHODS


def _method(item: Any) -> str | None:
    return item.callspec.params.get("name") if hasattr(item, "callspec") else None


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Leave out video methods on families that have no video tokens."""
    items[:] = [
        item
        for item in items
        if _method(item) not in VIDEO_METHODS
        or item.callspec.params.get("family", "qwen2_vl") in tiny.VIDEO_FAMILIES
        or item.get_closest_marker("images") is not None
    ]


@pytest.fixture(autouse=True)
def videos_for_video_methods(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a test has a video method as its `name`, `tiny_inputs` gives videos unless it is told what to give."""
    if _method(request.node) not in VIDEO_METHODS or request.node.get_closest_marker("images") is not None:
        return
    for name, module in list(sys.modules.items()):
        if name.startswith("tests.contracts.") and getattr(module, "tiny_inputs", None) is tiny.tiny_inputs:
            monkeypatch.setattr(module, "tiny_inputs", partial(_on_video, tiny.tiny_inputs))


def _on_video(make: Any, *args: Any, video: Any = False, **kwargs: Any) -> Any:
    return make(*args, video=video or True, **kwargs)
