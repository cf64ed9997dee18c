"""Times from records of both kinds, and what does not belong to the runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.eval.stats.builder import header, run, samples
from vlm_eff.core.errors import InputError
from vlm_eff.eval.record import Record
from vlm_eff.eval.report.times import read_times
from vlm_eff.eval.runs.folder import Run
from vlm_eff.eval.stats.interval import Interval

TIMES = {"ratio": 0.7, "low": 0.6, "high": 0.8, "first_ms": 7.0, "second_ms": 10.0, "pairs": 20}
CASE = {"batch": 1, "images": 1}
OF_EVAL = {"rows": [{"label": "bare"}, {"label": "fastv", "first_token": TIMES}]}
OF_BENCH = [
    {"case": CASE, "arm": "bare", "ratios": {}},
    {"case": CASE, "arm": "fastv", "ratios": {"ttft": TIMES, "e2e": TIMES}},
]


def record(path: Path, result: Any, **changed: Any) -> Path:
    values = {"task": "t", "task_version": "1", "model": "tiny", "config": {"a": 1}, "device": "2-core CPU", "n": 20}
    head = header(1)
    return Record(**(values | {"packages": head.packages, "result": result} | changed)).write(path / "record.json")


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return [run(tmp_path / "bare", samples([1.0] * 3)), run(tmp_path / "it", samples([1.0] * 3), header(3, "fastv"))]


@pytest.mark.parametrize("result", [OF_EVAL, OF_BENCH], ids=["eval", "bench"])
def test_times_are_found_by_the_name_of_the_arm(tmp_path: Path, runs: list[Run], result: Any) -> None:
    found, text = read_times(record(tmp_path, result), runs, ["bare", "the label"])
    assert found == {"the label": Interval(0.7, 0.6, 0.8)}
    assert "median of 20 interleaved pairs" in text and "2-core CPU, ratios only" in text and "elsewhere" not in text


def test_times_from_elsewhere_are_refused_or_said(tmp_path: Path, runs: list[Run]) -> None:
    place = record(tmp_path, OF_EVAL, device="GPU")
    with pytest.raises(InputError, match=r"machine: 2-core CPU and GPU.*--force"):
        read_times(place, runs, ["bare", "fastv"])
    assert "Measured elsewhere than the answers: machine" in read_times(place, runs, ["a", "b"], force=True)[1]
    with pytest.raises(InputError, match=r"torch: 2\.15\.0 and 2\.14\.0"):
        read_times(record(tmp_path, OF_EVAL, packages={"torch": "2.14.0"}), runs, ["bare", "fastv"])


@pytest.mark.parametrize(
    ("result", "changed", "said"),
    [
        (OF_EVAL, {"model": "other"}, "times of other"),
        ({"rows": [{"label": "snapkv", "first_token": TIMES}]}, {}, "no time of these runs in .* snapkv"),
        ([*OF_BENCH, {"case": {"batch": 2}, "arm": "fastv", "ratios": {}}], {}, "several cases"),
        ({"other": 1}, {}, "holds no times"),
        ([1], {}, "holds no times"),
    ],
)
def test_what_does_not_belong_to_the_runs(
    tmp_path: Path, runs: list[Run], result: Any, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        read_times(record(tmp_path, result, **changed), runs, ["bare", "fastv"], force=True)
