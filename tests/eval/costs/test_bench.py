"""The bench: identical arms, what it refuses, what it asserts, and what it prints."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from vlm_eff.cli import app
from vlm_eff.core.errors import StateError
from vlm_eff.core.handle import Handle
from vlm_eff.eval.costs import bench as bench_module
from vlm_eff.eval.costs.bench import Timing, bench, notes
from vlm_eff.eval.costs.cases import Case, grid
from vlm_eff.eval.measure import paired_runs
from vlm_eff.eval.record import read_record
from vlm_eff.eval.subject import Subject
from vlm_eff.tokens import fastv, pyramiddrop, uniform_grid, zipvl_attention

NOTHING = uniform_grid(keep_ratio=1.0)
SHORT = Timing(pairs=3, warmup=0, flops=False)


class Noisy:
    """A clock of a busy machine: what happens between two looks takes a random time, sometimes very long."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.now = 0.0

    def __call__(self) -> float:
        self.now += float(self.rng.lognormal(0.0, 0.5)) * (10 if self.rng.random() < 0.05 else 1)
        return self.now

    def run(self, factor: float = 1.0) -> dict[str, float]:
        before = self.now
        first = factor * (self() - before)
        return {"ttft": first, "e2e": first + self() - before}


def test_identical_arms_cover_one_as_often_as_they_say() -> None:
    covered = []
    for seed in range(100):
        clock = Noisy(seed)
        found = paired_runs(clock.run, clock.run, pairs=20, warmup=1, seed=seed)
        covered.append([found[name].low <= 1 <= found[name].high for name in ("ttft", "e2e")])
    # 95 % of intervals; for medians of few pairs the bootstrap is a little careful
    assert np.mean(covered, axis=0) == pytest.approx(0.95, abs=0.05)


def test_different_arms_do_not_cover_one() -> None:
    clock = Noisy(0)
    found = paired_runs(lambda: clock.run(0.2), clock.run, pairs=30, warmup=1)
    assert found["ttft"].high < 1


def test_identical_arms_are_one(subject: Subject) -> None:
    ticks = itertools.count()
    timing = Timing(pairs=4, warmup=1, flops=False, clock=lambda: float(next(ticks)))
    row = bench(subject, [Case(new_tokens=2)], {"nothing": (NOTHING,)}, timing=timing)[1]
    assert {name: (times.low, times.ratio, times.high) for name, times in row.ratios.items()} == dict.fromkeys(
        ("ttft", "e2e", "tpot"), (1, 1, 1)
    )


def test_real_arms_and_what_cannot_be_is_a_row(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {
        "nothing": (NOTHING,),
        "two writers": (fastv(), pyramiddrop(keep_ratio=0.5, layers=(1, 2, 4))),
        "no such layer": (fastv(layer=99),),
    }
    rows = bench(subject, grid(new_tokens=[1], batch=[1, 2]), arms, timing=SHORT)
    assert [row.arm for row in rows] == ["bare", *arms] * 2
    assert [row.status for row in rows] == ["ok", "ok", "refused", "refused"] * 2
    one = rows[1].ratios
    # one new token has no time a token
    assert set(one) == {"ttft", "e2e"} and 0 < one["ttft"].low <= one["ttft"].ratio <= one["ttft"].high
    assert rows[2].reason is not None and rows[2].costs is None
    json.dumps([row.to_dict() for row in rows])

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    monkeypatch.setattr(bench_module, "measure_call", full)
    rows = bench(subject, [Case()], {"nothing": (NOTHING,)}, timing=SHORT)
    assert [(row.status, row.reason) for row in rows] == [("out of memory", "CUDA out of memory.")] * 2
    monkeypatch.setattr(bench_module, "measure_call", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench(subject, [Case()], {}, timing=SHORT)


def test_a_pause_that_does_not_restore_is_seen(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handle, "paused", lambda self: contextlib.nullcontext(self))
    with pytest.raises(StateError, match="off by"):
        bench(subject, [Case(new_tokens=1)], {"fastv": (fastv(layer=1, keep_ratio=0.3),)}, timing=SHORT)


def test_what_else_differs_is_said() -> None:
    assert notes((fastv(),), {"text": "sdpa"}, {"text": "sdpa"}) == ()
    assert notes((fastv(),), {"text": "sdpa"}, {"text": "eager"}) == (
        "text attention: eager with the plugin, sdpa bare",
    )
    assert "operation of its own" in notes((zipvl_attention(layers=(1,)),), {}, {})[0]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


def test_command_writes_a_record(model_folder: Path, tmp_path: Path) -> None:
    common = (
        "--model",
        str(model_folder),
        "--plugin",
        "fastv:layer=1,keep_ratio=0.5",
        "--plugin",
        "fastv + pyramiddrop",
    )
    common = (*common, "--device", "cpu", "--pairs", "3", "--warmup", "0", "--no-flops", "--new-tokens", "1,2")
    made = run(*common, "--json", "--output", str(tmp_path / "record.json"))
    assert made.exit_code == 0, made.output
    said = json.loads(made.stdout)
    assert said == json.loads((tmp_path / "record.json").read_text())
    record = read_record(tmp_path / "record.json")
    assert record.n == 3 and record.config["timing"] == "CPU, ratios only"
    assert [(row["case"]["new_tokens"], row["status"]) for row in record.result] == [
        (1, "ok"), (1, "ok"), (1, "refused"), (2, "ok"), (2, "ok"), (2, "refused"),
    ]  # fmt: skip
    assert record.result[1]["costs"]["tpot_ms"] is None and "tpot" not in record.result[1]["ratios"]
    assert {"before", "after"} == set(record.config["machine"])
    table = run(*common[:-1], "1")
    assert table.exit_code == 0 and "ratios only" in table.stdout and "refused" in table.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no --plugin"),
        (("--plugin", "fastv", "--batch", "1,x"), "whole numbers"),
        (("--plugin", "fastv", "--batch", "0"), "batch=0"),
        (("--plugin", "fastv", "--plugin", "fastv"), "twice"),
        (("--plugin", "bare"), "bare"),
        (("--plugin", "fastv", "--pairs", "2"), ""),
    ],
)
def test_wrong_arguments_are_refused(arguments: tuple[str, ...], said: str) -> None:
    made = run(*arguments)
    assert made.exit_code == 2 and said in made.output
