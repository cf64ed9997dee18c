"""The tab "Diffusion" through gradio's own client."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vlm_eff.core.denoise import DenoiseContext, DenoisePlugin, DenoiserSite, DenoiseSite
from vlm_eff.core.registry import METHODS, Method
from vlm_eff.eval.subject import open_image

_DRAW = "/draw"
_SPEC = "forecast:interval=2"


@dataclass(frozen=True)
class Breaker(DenoisePlugin):
    """A plugin of a third party that breaks in the middle of a run."""

    name: str = "breaker"
    sites: tuple[DenoiseSite, ...] = (DenoiserSite(),)
    writes: frozenset[Any] = frozenset()

    def bind(self, context: DenoiseContext) -> Breaker:
        return self

    def at(self, site: DenoiseSite, view: Any) -> None:
        if view.step.index == 2:
            raise ZeroDivisionError("seven by nothing")


def test_pictures_charts_numbers_and_code_come_back(client: Any) -> None:
    said, pair, apart, rival, steps, costs, table, stats, code, record = client.predict(
        "", 3, _SPEC, 6, 1.5, 0, api_name=_DRAW
    )
    assert "computed 3.00 of 6 evaluations (50%)" in said and "with 3 steps comes to" in said
    assert [open_image(Path(path)).size for path in (*pair, apart, rival)] == [(384, 384)] * 4
    assert steps["type"] == costs["type"] == "matplotlib" and len(table["data"]) == 3
    found = json.loads(Path(record).read_text(encoding="utf-8"))
    assert found["config"]["asked"] == {"labels": [3]} and len(found["result"]["computed"]) == 6
    assert "3 computed" in stats or "3.00 computed" in stats
    made: dict[str, Any] = {}
    assert 'load_painter("small-unet", classes=(3,))' in code
    exec(compile(code.split("to_image(full[0]).save")[0], "copied", "exec"), made)
    assert made["full"].shape == (1, 3, 16, 16)


def test_what_cannot_be_drawn_is_one_sentence(refused: Callable[..., str], client: Any) -> None:
    before = client.predict("", 3, _SPEC, 4, 1.5, 0, api_name=_DRAW)[0]
    METHODS.add("breaker", Method("breaker", Breaker, "third party", "", ""))
    try:
        for wrong, words in (
            (("", 12, _SPEC, 4, 1.5, 0), "class 12"),
            (("", "ring", _SPEC, 4, 1.5, 0), "class 'ring'"),
            (("a cat", 3, _SPEC, 4, 1.5, 0), "a prompt"),
            (("", 3, "forcast", 4, 1.5, 0), "Did you mean"),
            (("", 3, "", 4, 1.5, 0), "no plugin"),
            (("", 3, "fastv", 4, 1.5, 0), "methods of the room `diffusion`"),
            (("", 3, "first_block", 4, 1.5, 0), "no run of blocks is known"),
            (("", 3, "forecast:schedule='/etc/steps.json'", 4, 1.5, 0), "names a file"),
            (("", 3, _SPEC, 4.5, 1.5, 0), "steps 4.5"),
            (("", 3, _SPEC, 4, 1.5, -1), "seed -1"),
            (("", 3, "breaker", 4, 1.5, 0), "ZeroDivisionError: seven by nothing"),
        ):
            assert words in refused(*wrong, api_name=_DRAW), wrong
    finally:
        METHODS._values.pop("breaker")
    assert client.predict("", 3, _SPEC, 4, 1.5, 0, api_name=_DRAW)[0] == before


def test_a_drawing_can_be_stopped(client: Any, desk: Any) -> None:
    with desk.working("somebody else", threading.Event()):
        job = client.submit("", 3, _SPEC, 200, 1.5, 0, api_name=_DRAW)
        while not desk._stops.keys() - {"somebody else"}:
            pass
    client.predict(api_name="/stop")
    with pytest.raises(Exception, match="Stopped"):
        job.result(timeout=30)
    assert not desk._stops
