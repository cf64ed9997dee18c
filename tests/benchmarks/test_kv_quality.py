"""The script of answers out of a compressed cache: what is finished is kept, and rows are compared by question."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_eff.eval.kv_settings import kv_settings
from vlm_eff.reference.evaluate import Sample
from vlm_eff.reference.questions import Question

ROOT = Path(__file__).parents[2]
PICTURES = [Image.new("RGB", (4, 4)) for _ in range(4)]
ASKED = {"scenes": [Sample(PICTURES[number // 2], Question("?", "yes", "yes_no")) for number in range(8)]}


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("kv_quality", ROOT / "benchmarks" / "kv_quality.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(right: str) -> dict[str, Any]:
    return {"bytes_ratio": 1.0, "accuracy": {}, "right": {"scenes": right}}


def setting(kind: str, label: str, seen: str, unseen: str | None = None) -> dict[str, Any]:
    ways = {"seen": row(seen), "unseen": None if unseen is None else row(unseen)}
    return {"kind": kind, "label": label, "column": 0 if kind == "bare" else 0.2, "spec": label, **ways}


def test_rows_are_compared_with_the_full_cache_and_with_chance_question_by_question(script: Any) -> None:
    made = script.compared(
        [
            setting("bare", "bare", "11111110"),
            setting("evict", "snapkv", "11111110"),
            setting("evict", script.TEXT_KEPT, "00010100"),
            setting("bits", "kivi", "11111100", "11111111"),
        ],
        ASKED,
    )
    bare, snapkv, random, kivi = (one["seen"]["more_than"] for one in made)
    assert bare == {} and set(random) == set(kivi) == {"full"}
    # four pictures, of two questions each, and a gain on every one of them
    value, low, high = snapkv["random"]["scenes"]
    assert value == 0.625 and 0 < low < value < high <= 1
    assert kivi["full"]["scenes"][0] == -0.125 and kivi["full"]["scenes"][2] >= 0
    low, high = snapkv["full"]["scenes"][1:]
    assert low < 0 < high
    assert made[3]["unseen"]["more_than"] == {}


def test_finished_rows_are_found_again_under_the_same_conditions_alone(script: Any, tmp_path: Path) -> None:
    done = tmp_path / "done.jsonl"
    (first, *_) = settings = kv_settings(("snapkv",))
    script.Finished(done, {"model": "a"}).add("seen", first.spec, row("1"))
    again = script.Finished(done, {"model": "a"})
    assert [one["spec"] for one in script.finished_rows(settings, again)] == [first.spec]
    assert again.find("unseen", first.spec) is None
    assert script.finished_rows(settings, script.Finished(done, {"model": "b"})) == []


def test_only_columns_that_were_asked_for_are_measured(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def measure(subject: Any, samples: Any, settings: list[Any], finished: Any) -> None:
        asked.extend(one.spec for one in settings)
        for ends in ("seen", "unseen"):
            for spec in ("bare", *asked):
                finished.add(ends, spec, row("1") | {"right": {part: "1" * len(one) for part, one in samples.items()}})

    monkeypatch.setattr(script, "measure", measure)
    # two thousand training scenes
    monkeypatch.setattr(script, "majority", lambda asked: dict.fromkeys(asked, 0.5))
    output = tmp_path / "record.json"
    script.main(
        scenes=1,
        easy=1,
        method=["snapkv", "kivi"],
        done=None,
        output=output,
        model=None,
        column=[0.2, 4],
        write_only=False,
    )
    assert asked == ["kivi:bits=4,residual=32", "snapkv:keep_ratio=0.2,window=4"] and output.is_file()
