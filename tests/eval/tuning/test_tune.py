"""Tuning of a tiny model, from items to a preset."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import vlm_eff
from vlm_eff.cli import tune as command
from vlm_eff.cli.app import app
from vlm_eff.cli.tune import parse_drop
from vlm_eff.core.config import to_dict
from vlm_eff.core.errors import ConfigError, InputError
from vlm_eff.core.recipe import Recipe
from vlm_eff.eval.runs.asking import show
from vlm_eff.eval.runs.run import run_task
from vlm_eff.eval.subject import Subject
from vlm_eff.eval.tasks.item import Task
from vlm_eff.eval.tuning.budget import Budget
from vlm_eff.eval.tuning.questions import Questions
from vlm_eff.eval.tuning.tune import TuneSettings, split_items, tune
from vlm_eff.recipes.preset import save_preset

METHODS = {"entries": ("divprune",), "decoders": ("fastv",), "evictors": ("snapkv",), "formats": ("kivi:bits=8",)}
SETTINGS = TuneSettings(
    Budget(flops=0.6, kv=0.4), 1.0, trials=4, calibration=3, runoff=3, validation=3, batch_size=4, pairs=0
)


def test_parts_share_no_picture_and_no_item_is_left_out_of_its_cluster(task: Task) -> None:
    for seed in range(4):
        parts = split_items(task, (2, 0, 4), seed)
        assert [len(part) for part in parts] == [3, 0, 6]
        assert len({item.cluster for part in parts for item in part}) == 3
    assert split_items(task, (4, 4), 0) == split_items(task, (4, 4), 0)
    with pytest.raises(InputError, match=r"12 items of 4 pictures or videos for 9 \+ 4"):
        split_items(task, (9, 4))


def test_the_run_off_chooses_among_the_finalists(subject: Subject, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, calibration=6, finalists=2)
    first = tune(subject, task, replace(settings, runoff=0, validation=3), methods=METHODS)
    real = Questions.loyalty

    def turned(questions: Questions, plugins: Any) -> float:
        value = real(questions, plugins)
        # three items are those of the run-off or of the validation: there the search's best is the worst
        few = sum(len(batch.items) for batch in questions._batches) == 3
        return value - (few and [*map(to_dict, plugins)] == [*map(to_dict, first.best.plugins)])

    monkeypatch.setattr(Questions, "loyalty", turned)
    second = tune(subject, task, settings, methods=METHODS)
    assert second.best != first.best and second.best.loyalty <= first.best.loyalty
    assert tune(subject, task, replace(settings, finalists=1), methods=METHODS).best == first.best


def test_a_tiny_model_is_tuned_the_same_twice_and_the_preset_attaches(
    subject: Subject, task: Task, tmp_path: Path
) -> None:
    tuned = tune(subject, task, SETTINGS, methods=METHODS)
    assert tuned.best == tune(subject, task, SETTINGS, methods=METHODS).best
    assert tuned.asked == 4 and not any(excess > 0 for excess in tuned.best.costs.over(SETTINGS.budget).values())
    about = json.loads(json.dumps(tuned.about()))
    assert about["validation"]["n"] == 3 and about["packages"]
    assert about["settings"]["budget"] == {"flops": 0.6, "kv": 0.4}
    path = save_preset(tmp_path / "tuned.json", tuned.preset())
    recipe = vlm_eff.plugin(str(path))
    assert isinstance(recipe, Recipe) and [*map(to_dict, recipe)] == [*map(to_dict, tuned.best.plugins)]
    row = show(task.items[0], None, "pictures").row
    assert row is not None
    with vlm_eff.attach(subject.model, recipe) as handle:
        subject.first_token(subject.batch([row]))
        assert len(handle.plugins) == len(tuned.best.plugins)
    assert tuned.keeps
    strict, worse = replace(SETTINGS, max_drop=0.01), replace(tuned.validation.delta, value=-0.02)
    assert not replace(tuned, settings=strict, validation=replace(tuned.validation, delta=worse)).keeps


@pytest.mark.parametrize("cut", [False, True])
def test_bare_answers_are_those_of_a_run_and_keeping_everything_keeps_them(
    subject: Subject, task: Task, tmp_path: Path, cut: bool
) -> None:
    questions = Questions(subject, task, task.items, 16, cut=cut)
    run = run_task(subject, task, (), tmp_path / "run")
    assert questions.bare.texts == {one.id: one.answer for one in run.samples.values()}
    keep = (vlm_eff.plugin("uniform_grid:keep_ratio=1.0"),)
    assert questions.answer(keep).texts == questions.bare.texts
    assert questions.loyalty(keep) == pytest.approx(questions.loyalty(()), rel=1e-4)
    assert 0 < questions.loyalty((vlm_eff.plugin("random_drop:keep_ratio=0.02"),)) < 1


def test_a_cache_is_felt_by_the_first_token_when_prompts_end_early(subject: Subject, task: Task) -> None:
    evict = (vlm_eff.plugin("random_evict:keep_ratio=0.02"),)
    one = replace(task, max_new_tokens=1)
    whole, cut = (Questions(subject, one, one.items, 16, cut=early) for early in (False, True))
    assert whole.loyalty(evict) == pytest.approx(whole.loyalty(()), rel=1e-4)
    assert cut.loyalty(evict) != pytest.approx(cut.loyalty(()), rel=1e-2)


def test_only_what_the_bare_model_got_right_has_to_be_kept(subject: Subject, task: Task) -> None:
    one = Questions(subject, task, task.items[:1], 16, cut=False)
    some = Questions(subject, task, task.items, 16, cut=False)
    (batch,) = some._batches
    with torch.inference_mode():
        batch.worth[:] = torch.tensor([float(item.id == task.items[0].id) for item in batch.items])
    assert some.loyalty(()) == pytest.approx(one.loyalty(()), rel=1e-3)
    # nothing right: everything counts
    with torch.inference_mode():
        batch.worth[:] = 0.0
    assert some.loyalty(()) != pytest.approx(one.loyalty(()), rel=1e-3)


def test_the_command_writes_a_preset_or_says_why_not(
    subject: Subject, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "load_subject", lambda *a, **k: subject)
    monkeypatch.setattr(command, "load_task", lambda *a, **k: task)
    monkeypatch.setattr(command, "tune", lambda *a, **k: tune(*a, methods=METHODS, **k))

    def call(output: str, *more: str) -> Any:
        sizes = ["--trials", "2", "--calibration", "3", "--runoff", "3", "--validation", "3", "--pairs", "0"]
        asked = ["tune", "--task", "shapes", "--budget", "flops=0.6", "--output", str(tmp_path / output)]
        return CliRunner().invoke(app, [*asked, *sizes, *more])

    made = call("tuned.json", "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["keeps"] and vlm_eff.plugin(str(tmp_path / "tuned.json")).name == "tuned"
    assert (tmp_path / "tuned.study.jsonl").exists()
    with monkeypatch.context() as late:
        late.setattr(command.Tuned, "missed", {"ttft": 1.2})
        slow = call("slow.json")
    assert slow.exit_code == 1 and "budget of ttft is missed" in slow.stderr and (tmp_path / "slow.json").exists()
    monkeypatch.setattr(command.Tuned, "keeps", False)
    refused = call("other.json")
    assert refused.exit_code == 1 and "nothing written" in refused.stderr and not (tmp_path / "other.json").exists()
    assert call("other.txt").exit_code == 2 and call("x.json", "--max-drop", "some").exit_code == 2
    assert CliRunner().invoke(app, ["tune", "--task", "shapes"]).exit_code == 2


def test_drops_are_read() -> None:
    assert parse_drop("1%") == parse_drop("0.01") == 0.01
    with pytest.raises(ConfigError, match="max_drop"):
        TuneSettings(Budget(kv=0.5), max_drop=2.0)
