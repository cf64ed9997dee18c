"""A sweep: bare, plugins, and baselines as dear as the plugins really were, in one record."""

from dataclasses import replace
from pathlib import Path

import pytest

from vlm_eff.core.errors import ConfigError
from vlm_eff.eval.runs.arms import Arm
from vlm_eff.eval.runs.plan import Shard
from vlm_eff.eval.runs.run import RunSettings
from vlm_eff.eval.runs.sweep import Asked, Sweep, Wanted
from vlm_eff.eval.subject import Subject
from vlm_eff.eval.tasks.item import Task
from vlm_eff.kvcache import snapkv
from vlm_eff.tokens import fastv

SETTINGS = RunSettings(batch_size=4)


def test_every_plugin_meets_baselines_that_cost_the_same(subject: Subject, task: Task, tmp_path: Path) -> None:
    arms = (
        Arm("fastv", (fastv(keep_ratio=0.25, layer=4),), "fastv"),
        Arm("snapkv", (snapkv(keep_ratio=0.5, window=4),), "snapkv"),
    )
    sweep = Sweep(subject, [Asked(task, 5)], tmp_path / "out", SETTINGS)
    record = sweep.ask(Wanted(arms, seeds=2, pairs=3))
    assert record is not None and record.n == 5
    rows = {row["label"]: row["tasks"]["shapes"] for row in record.result["rows"]}
    # four layers see 144 tokens and four see 36
    blind = ("random_drop @ 90", "random_drop @ 90 seed 1", "uniform_grid @ 90", "average_pool @ 90", "downsize @ 90")
    assert set(rows) == {"bare", "fastv", "snapkv", *blind, *(one for one in rows if one.startswith("random_evict"))}
    assert sum(one.startswith("random_evict") for one in rows) == 2
    assert rows["fastv"]["costs"]["n_eq"] == rows["random_drop @ 90"]["costs"]["n_eq"] == 90
    kept = rows["snapkv"]["costs"]["kv_bytes_ratio"]
    evicted = next(row for label, row in rows.items() if label.startswith("random_evict"))
    assert 0.4 < kept < 0.7 and evicted["costs"]["kv_bytes_ratio"] == pytest.approx(kept, abs=0.05)
    seeds = [sweep.runs["shapes"][label].header.plugins for label in blind[:2]]
    assert seeds[0] != seeds[1]
    # smaller pictures: 5/8 of the tokens, so the root of it on a side
    small = sweep.runs["shapes"]["downsize @ 90"]
    assert small.samples["q0"].media[0]["size"] == [38, 38] and small.header.settings["baseline"] == "downsize"
    times = {row["label"]: "first_token" in row for row in record.result["rows"]}
    assert times["fastv"] and not times["bare"] and record.config["visual_tokens"] == 144

    again = Sweep(subject, [Asked(task, 5)], tmp_path / "out", SETTINGS).ask(Wanted(arms, seeds=2))
    assert again is not None and [row["tasks"] for row in again.result["rows"]] == [
        row["tasks"] for row in record.result["rows"]
    ]


def test_methods_are_set_to_shares(subject: Subject, task: Task, tmp_path: Path) -> None:
    wanted = Wanted(methods=("fastv", "fastv:layer=1"), shares=(0.5, 0.1))
    sweep = Sweep(subject, [Asked(task, 3)], tmp_path / "out", SETTINGS)
    record = sweep.ask(wanted)
    assert record is not None
    rows = {row["label"]: row for row in record.result["rows"]}
    assert rows["fastv @ 72"]["tasks"]["shapes"]["costs"]["n_eq"] == pytest.approx(72, abs=1)
    assert rows["fastv:layer=1 @ 72"]["method"] == "fastv:layer=1" and rows["fastv @ 72"]["n_eq_asked"] == 72
    assert set(record.result["unreachable"]) == {"fastv @ 14", "fastv:layer=1 @ 14"}
    assert {"downsize @ 14", "uniform_grid @ 72"} <= set(rows)
    for wrong in (replace(wanted, shares=(1.5,)), replace(wanted, methods=("nothing",))):
        with pytest.raises(ConfigError):
            Sweep(subject, [Asked(task, 3)], tmp_path / "other", SETTINGS).ask(wrong)


def test_the_last_process_sums_up(subject: Subject, task: Task, tmp_path: Path) -> None:
    wanted = Wanted((Arm("fastv", (fastv(keep_ratio=0.5),), "fastv"),), baselines=False)
    for rank in (0, 1):
        sweep = Sweep(subject, [Asked(task)], tmp_path / "out", SETTINGS, Shard(rank, 2))
        assert sweep.ask(wanted) is None
    record = Sweep(subject, [Asked(task)], tmp_path / "out", SETTINGS).ask(wanted)
    assert record is not None and [row["label"] for row in record.result["rows"]] == ["bare", "fastv"]
    assert record.result["rows"][0]["tasks"]["shapes"]["error_rate"] == pytest.approx(1 / 11)
