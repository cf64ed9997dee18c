"""Comparisons of runs worked out by hand: what changed, groups, hard and easy items, baselines, thresholds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.eval.stats.builder import TASK, costs, downsized, family, header, run, samples, write
from vlm_eff.core.errors import ConfigError, InputError
from vlm_eff.eval.runs.folder import read_run
from vlm_eff.eval.stats.baselines import spends_no_more
from vlm_eff.eval.stats.comparison import Compared, compare_runs
from vlm_eff.eval.stats.thresholds import missed, read_thresholds

#          q0   q1   q2   q3   q4   q5   q6   q7
BEFORE = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
AFTER_ = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]


@pytest.fixture
def compared(tmp_path: Path) -> Compared:
    first, *others = (read_run(folder) for folder in family(tmp_path, BEFORE, AFTER_))
    return compare_runs(first, others, by=["family"])


def test_what_changed_by_hand(compared: Compared) -> None:
    bare, fastv, grid, small = compared.rows
    assert bare.paired is None and bare.summary.kind == "bare"
    assert bare.summary.accuracy.value == 5 / 8 and bare.summary.costs["n_eq"] == 64
    assert fastv.summary.kind == "method" and grid.summary.kind == small.summary.kind == "baseline"
    assert fastv.summary.label == "fastv:keep_ratio=0.5" and small.summary.label == "downsize"
    assert fastv.summary.per_layer == (64, 16) and fastv.summary.costs["flops_ratio"] == 40 / 64
    changed = fastv.paired
    assert changed is not None
    assert changed.delta.value == pytest.approx(-1 / 8) and changed.relative == pytest.approx(4 / 5)
    assert changed.delta.low < -1 / 8 < changed.delta.high  # type: ignore[operator]
    # of three that changed two got worse: 2 * (C(3, 0) + C(3, 1)) / 8, at most 1
    assert changed.test.p == changed.mcnemar == 1.0
    assert changed.loyalty == 5 / 8
    assert changed.worse == ("q3", "q4") and changed.better == ("q5",)


def test_groups_by_hand(compared: Compared) -> None:
    even, odd = compared.groups["family"]
    assert (even.name, even.items, odd.name, odd.items) == ("even", 4, "odd", 4)
    assert [cell.accuracy.value for cell in even.cells[:2]] == [3 / 4, 2 / 4]
    assert even.cells[0].delta is None and even.cells[1].delta.value == -1 / 4  # type: ignore[union-attr]
    assert odd.cells[1].delta.value == 0  # type: ignore[union-attr]


def test_hard_and_easy_items_by_hand(compared: Compared) -> None:
    """Smaller pictures got exactly the items wrong that the bare model got right."""
    vtc = compared.rows[1].paired.vtc  # type: ignore[union-attr]
    # the lines of a bare model hold ratios to itself
    assert compared.rows[3].summary.costs["flops_ratio"] is None
    assert vtc is not None and vtc.downsized == "downsize" and vtc.n_eq == 32
    assert (vtc.hard.items, vtc.hard.reference, vtc.hard.accuracy) == (5, 1.0, 3 / 5)
    assert (vtc.easy.items, vtc.easy.reference, vtc.easy.accuracy) == (3, 0.0, 1 / 3)
    assert compared.rows[3].paired.vtc is None  # type: ignore[union-attr]


def test_a_method_stands_beside_the_best_baseline_that_spends_no_more(compared: Compared) -> None:
    (bar,) = compared.bars
    assert bar.method == "fastv:keep_ratio=0.5" and bar.baseline == "uniform_grid:keep_ratio=0.6"
    assert bar.margin is not None and bar.margin.value == pytest.approx(-1 / 8)
    assert "Below uniform_grid:keep_ratio=0.6 (62.5)" in compared.beaten and "fastv" in compared.beaten


def test_who_spends_no_more() -> None:
    def spent(n_eq: float | None, cache: float | None, flops: float | None = 0.5) -> dict[str, float | None]:
        return {"visual_tokens": 64.0, "n_eq": n_eq, "kv_bytes_ratio": cache, "flops_ratio": flops}

    drops = spent(32, 0.5)
    assert spends_no_more(spent(33, 0.52), drops) and spends_no_more(spent(20, None), drops)
    assert spends_no_more(spent(32, 0.5, 0.6), drops)  # tokens are the budget there
    assert not spends_no_more(spent(40, 0.5), drops) and not spends_no_more(spent(None, 0.1), drops)
    assert not spends_no_more(spent(32, 0.6), drops)
    # a cache method sees all tokens; fewer tokens with a larger cache are no match for it
    evicts = spent(64, 0.2, 1.0)
    assert spends_no_more(spent(64, 0.2, 1.0), evicts)
    assert not spends_no_more(spent(32, 0.5), evicts) and not spends_no_more(spent(32, None, None), evicts)
    sparse = spent(64, 1.0, 0.4)
    assert spends_no_more(spent(20, 0.3, 0.3), sparse) and not spends_no_more(spent(32, 0.5), sparse)


def test_a_baseline_that_costs_more_says_nothing(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / "bare", samples(BEFORE)),
        run(tmp_path / "fastv", samples(AFTER_, costs=costs(20.0)), header(8, "fastv")),
        run(tmp_path / "grid", samples(BEFORE, costs=costs(40.0)), header(8, "uniform_grid")),
    ]
    found = compare_runs(runs[0], runs[1:])
    assert found.bars[0].baseline is None and "what they are worth is open" in found.beaten
    assert compare_runs(runs[0], runs[1:2]).beaten == ""


def test_smaller_pictures_of_as_many_tokens_are_said(tmp_path: Path, compared: Compared) -> None:
    made = [run(tmp_path / "a", samples(BEFORE)), run(tmp_path / "b", samples(AFTER_), downsized(8))]
    said = "smaller pictures have no fewer tokens"
    assert any(said in remark for remark in compare_runs(made[0], made[1:]).remarks)
    assert not any(said in remark for remark in compared.remarks)


def test_one_seed_gives_one_result_and_json_holds_it(tmp_path: Path, compared: Compared) -> None:
    again = family(tmp_path / "again", BEFORE, AFTER_)
    first, *others = (read_run(folder) for folder in again)
    made = compare_runs(first, others, by=["family"]).to_dict()
    plain = json.loads(json.dumps(made))
    for one, other in zip(plain["rows"], json.loads(json.dumps(compared.to_dict()))["rows"], strict=True):
        assert one["paired"] == other["paired"]
        assert one["summary"] | {"folder": ""} == other["summary"] | {"folder": ""}


def test_an_item_that_could_not_be_asked_is_wrong_and_loyal_to_nothing(tmp_path: Path) -> None:
    before, after = samples([1.0] * 4), samples([1.0] * 4)
    for of_run in (before, after):
        of_run[0] = replace(of_run[0], status="error", error="no file", answer="", score=0.0, parsed=None)
    after[1] = replace(after[1], answer="  YES ")
    after[2] = replace(after[2], answer="", score=0.0, status="empty")
    made = compare_runs(run(tmp_path / "one", before), [run(tmp_path / "two", after, header(4, "fastv"))])
    row = made.rows[1]
    assert row.paired is not None and row.paired.loyalty == 2 / 4
    assert row.summary.rates == {"ok": 0.5, "unparsed": 0.0, "empty": 0.25, "error": 0.25}
    assert made.rows[0].summary.accuracy.value == 3 / 4


def test_clusters_reach_interval_and_test(tmp_path: Path) -> None:
    named = ["a", "a", "a", "a", "b", "b", "c", "d"]
    made = [run(tmp_path / "bare", samples(BEFORE, named))]
    made.append(run(tmp_path / "it", samples(AFTER_, named), header(8, "fastv")))
    found = compare_runs(made[0], made[1:])
    assert found.rows[0].summary.clusters == 4
    assert found.rows[1].paired.test.test == "sign flips"  # type: ignore[union-attr]
    assert any("Only 4 clusters" in remark for remark in found.remarks)


def test_the_tasks_own_metric_is_told_where_it_says_more(tmp_path: Path) -> None:
    """Precision of yes: of two said yes one is right."""
    head = header(4, task=TASK | {"items": 4, "metric": "pope"})
    asked = samples([1.0, 0.0, 1.0, 0.0])
    asked = [replace(one, parsed=said, gold={"answer": right}) for one, said, right in
             zip(asked, ("yes", "yes", "no", "no"), ("yes", "no", "no", "yes"), strict=True)]  # fmt: skip
    found = compare_runs(run(tmp_path / "it", asked, head), []).rows[0].summary
    assert found.accuracy.value == 0.5 and found.by_metric["precision"] == 0.5 and found.by_metric["yes_ratio"] == 0.5
    assert "accuracy" not in found.by_metric


def test_nothing_right_has_no_relative_accuracy(tmp_path: Path) -> None:
    made = [run(tmp_path / "bare", samples([0.0] * 3)), run(tmp_path / "it", samples([1.0] * 3), header(3, "fastv"))]
    assert compare_runs(made[0], made[1:]).rows[1].paired.relative is None  # type: ignore[union-attr]


def test_runs_of_one_name_are_told_apart_and_other_places_are_said(tmp_path: Path) -> None:
    made = [run(tmp_path / "bare", samples(BEFORE))]
    for name in ("x/it", "y/it", "other"):
        made.append(run(tmp_path / name, samples(AFTER_), header(8, "fastv", device="GPU")))
    found = compare_runs(made[0], made[1:])
    labels = [row.summary.label for row in found.rows]
    assert len(set(labels)) == 4 and labels[3] == "fastv (other)"
    assert sum("another machine" in remark for remark in found.remarks) == 3


@pytest.mark.parametrize("case", ["twice", "order", "small first", "no breakdown", "unfinished alone"])
def test_what_cannot_be_compared(tmp_path: Path, case: str) -> None:
    bare = run(tmp_path / "bare", samples(BEFORE))
    it = run(tmp_path / "it", samples(AFTER_), header(8, "fastv"))
    small = run(tmp_path / "small", samples(AFTER_), downsized(8))
    part = run(tmp_path / "part", samples(BEFORE), header(9))
    with pytest.raises(InputError if case == "unfinished alone" else ConfigError):
        if case == "twice":
            compare_runs(bare, [it, it])
        elif case == "order":
            compare_runs(it, [bare])
        elif case == "small first":
            compare_runs(small, [it])
        elif case == "no breakdown":
            compare_runs(bare, [it], by=["colour"])
        else:
            compare_runs(part, [])


def test_thresholds(compared: Compared) -> None:
    assert missed(compared, read_thresholds("acc=-0.125, loyalty=0.6,relative=0.8,ok=1")) == []
    said = missed(compared, read_thresholds("acc=-0.1,loyalty=0.9,acc_low=-0.01"))
    # baselines are not asked to hold anything
    assert len(said) == 3 and all(text.startswith("fastv") for text in said)
    assert "acc is -0.1250, below -0.1" in said[0]
    for text in ("speed=2", "acc", "acc=low", "acc=0,acc=1", "acc=nan", ""):
        with pytest.raises(ConfigError, match="acc_low"):
            read_thresholds(text)


def test_thresholds_need_a_method(tmp_path: Path) -> None:
    write(tmp_path / "bare", samples(BEFORE))
    with pytest.raises(ConfigError, match="without a run that has plugins"):
        missed(compare_runs(read_run(tmp_path / "bare"), []), {"acc": 0.0})
