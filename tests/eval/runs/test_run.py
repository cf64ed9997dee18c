"""A run: every item once, the same answers however it is cut, and no broken plugin that scores."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.eval.runs.pictures import picture
from vlm_eff.core.errors import CapabilityError, ConfigError, InputError
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.runs import asking
from vlm_eff.eval.runs import run as running
from vlm_eff.eval.runs.folder import HEADER, SAMPLES, Sample, SampleWriter, read_run
from vlm_eff.eval.runs.plan import Shard, batches, limited
from vlm_eff.eval.runs.run import RunSettings, owner_of, run_task
from vlm_eff.eval.subject import Subject
from vlm_eff.eval.tasks.item import Footage, Task
from vlm_eff.tokens import fastv, random_drop, uniform_grid
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.video import Sampling

SETTINGS = RunSettings(batch_size=3)
FEW = (uniform_grid(keep_ratio=0.25),)


def lines(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: asdict(sample) for name, sample in read_run(folder).samples.items()}


@dataclass(frozen=True)
class Broken(TokenReducer):
    """Works for a while, then raises."""

    def at(self, site: Any, view: Any) -> Any:
        CALLS.append(1)
        if len(CALLS) > 2:
            raise RuntimeError("the plugin is broken")
        return super().at(site, view)


CALLS: list[int] = []


def broken() -> Plugin:
    CALLS.clear()
    whole = uniform_grid(keep_ratio=0.5)
    assert isinstance(whole, TokenReducer)
    return Broken(**{name: getattr(whole, name) for name in whole.__dataclass_fields__})


def test_every_item_has_a_line_that_says_what_it_cost(subject: Subject, task: Task, tmp_path: Path) -> None:
    run = run_task(subject, task, FEW, tmp_path / "few", specs=("uniform_grid",), settings=SETTINGS)
    assert run.finished and run.header.label == "uniform_grid"
    assert list(run.header.settings) >= ["batch_size"] and run.header.settings["video_as"] == "pictures"
    sample = run.samples["q3"]
    assert sample.costs["n_eq"] == 36 and sample.costs["visual_tokens"] == 144
    assert sample.costs["kv_bytes_ratio"] < 0.5 and len(sample.costs["visual_per_layer"]) == 8
    assert 0 < sample.new_tokens <= 3 and sample.media[0]["size"] == [48, 48]
    bad = run.samples["q10"]
    assert (bad.status, bad.score, bad.answer) == ("error", 0.0, "") and "broken.png" in str(bad.error)


def test_answers_are_those_of_single_questions(subject: Subject, task: Task, tmp_path: Path) -> None:
    run = run_task(subject, task, (), tmp_path / "bare", settings=SETTINGS)
    assert run.header.label == "bare" and run.samples["q1"].costs["n_eq"] == 144
    for item in task.items[:5]:
        alone = subject.inputs([item.media[0].open()], item.prompt)  # type: ignore[union-attr]
        assert run.samples[item.id].answer == subject.answer(alone, max_new_tokens=3)


@pytest.mark.parametrize("cut", [0, 1, 2, 5])
def test_a_run_cut_anywhere_goes_on_to_the_same_result(subject: Subject, task: Task, tmp_path: Path, cut: int) -> None:
    plugins = (random_drop(keep_ratio=0.3, seed=5),)
    whole = lines(run_task(subject, task, plugins, tmp_path / "whole", settings=SETTINGS).folder)
    folder = run_task(subject, task, plugins, tmp_path / "cut", settings=SETTINGS).folder
    written = (folder / SAMPLES).read_bytes().splitlines(keepends=True)
    # so many whole lines, and half of the next one
    (folder / SAMPLES).write_bytes(b"".join(written[:cut]) + written[cut][:40])
    assert len(read_run(folder).samples) == cut
    run_task(subject, task, plugins, folder, settings=SETTINGS)
    assert lines(folder) == whole
    before = (folder / SAMPLES).read_bytes()
    run_task(subject, task, plugins, folder, settings=SETTINGS)
    assert (folder / SAMPLES).read_bytes() == before


def test_a_plugin_that_raises_fails_the_run(subject: Subject, task: Task, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the plugin is broken") as caught:
        run_task(subject, task, (broken(),), tmp_path / "run", settings=SETTINGS)
    assert "while asking items" in caught.value.__notes__[0]
    run = read_run(tmp_path / "run")
    assert 0 < len(run.samples) < 11 and not run.finished
    # and the model is as it was
    assert run_task(subject, task, (), tmp_path / "bare", settings=SETTINGS).finished


def test_a_runner_that_swallowed_errors_would_be_noticed(
    subject: Subject, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallowing(*arguments: Any) -> Any:
        try:
            return asking.ask(*arguments)
        except RuntimeError:
            return [asking.Answer("", 0, {}) for _ in arguments[1]]

    monkeypatch.setattr(running, "ask", swallowing)
    with pytest.raises(pytest.fail.Exception):
        test_a_plugin_that_raises_fails_the_run(subject, task, tmp_path)


def test_another_run_in_the_folder_is_refused(subject: Subject, task: Task, tmp_path: Path) -> None:
    folder = run_task(subject, task, FEW, tmp_path / "run", settings=SETTINGS).folder
    with pytest.raises(InputError, match="another plugins"):
        run_task(subject, task, (uniform_grid(keep_ratio=0.5),), folder, settings=SETTINGS)
    with pytest.raises(InputError, match=r"settings\.batch_size"):
        run_task(subject, task, FEW, folder, settings=replace(SETTINGS, batch_size=4))
    with pytest.raises(InputError, match=r"task\.digest"):
        changed = replace(task, items=(replace(task.items[0], gold={"answer": "square"}), *task.items[1:]))
        run_task(subject, changed, FEW, folder, settings=SETTINGS)
    with pytest.raises(CapabilityError, match="layer 99"):
        run_task(subject, task, (fastv(layer=99),), tmp_path / "refused", settings=SETTINGS)
    assert not (tmp_path / "refused").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        run_task(subject, task, FEW, tmp_path / "other", settings=SETTINGS)


def test_shards_together_are_the_run(subject: Subject, task: Task, tmp_path: Path) -> None:
    whole = lines(run_task(subject, task, FEW, tmp_path / "whole", settings=SETTINGS).folder)
    for rank in range(3):
        made = run_task(subject, task, FEW, tmp_path / "parts", settings=SETTINGS, shard=Shard(rank, 3))
    assert made.finished and lines(tmp_path / "parts") == whole
    assert len(list((tmp_path / "parts").glob("samples-*.jsonl"))) == 3


def test_gold_that_the_metric_cannot_use_is_said_before_anything_is_asked(
    subject: Subject, task: Task, tmp_path: Path
) -> None:
    wrong = replace(task, items=(*task.items[:3], replace(task.items[3], gold={"answers": ["circle"]})))
    with pytest.raises(InputError, match="'q3' of shapes"):
        run_task(subject, wrong, (), tmp_path / "run", settings=SETTINGS)
    assert not (tmp_path / "run").exists()


def test_shards_are_read_from_the_environment() -> None:
    assert owner_of({}) == Shard(0, 1)
    assert owner_of({"RANK": "1", "WORLD_SIZE": "2"}) == Shard(1, 2)
    for wrong in ({"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x"}, {"WORLD_SIZE": "0"}):
        with pytest.raises(ConfigError):
            owner_of(wrong)


def test_limits_are_spread_and_batches_hold_every_item_once(task: Task) -> None:
    assert [item.id for item in limited(task, 4).items] == ["q0", "q2", "q5", "q8"]
    assert {item.cluster for item in limited(task, 4, whole=True).items} == {"picture 0", "picture 2"}
    assert limited(task, None) is task and limited(task, 99) is task
    made = batches(task.items, 3)
    assert sorted(item.id for batch in made for item in batch) == sorted(item.id for item in task.items)
    for wrong in (lambda: limited(task, 0), lambda: batches(task.items, 0)):
        with pytest.raises(ConfigError):
            wrong()


def test_frames_are_shown_as_pictures_where_videos_are_not_taken(subject: Subject, task: Task, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in range(6):
        picture(number).save(folder / f"{number}.png")
    footage = Footage(folder, fps=3)
    items = (
        replace(task.items[0], media=(footage,)),
        replace(task.items[1], media=(footage, replace(footage, scale=0.5))),
        replace(task.items[2], media=(replace(footage, path=tmp_path / "gone"),)),
    )
    films = replace(task, items=items, sampling=Sampling(frames=2))
    run = run_task(subject, films, FEW, tmp_path / "run", settings=SETTINGS)
    one, two, gone = (run.samples[item.id] for item in items)
    assert one.costs["visual_tokens"] == 2 * 144 and two.costs["visual_tokens"] == 4 * 144
    assert one.media[0]["indices"] == [1, 4] and run.header.task["sampling"]["convention"] == "middle"
    assert gone.status == "error"
    with pytest.raises(ConfigError, match="without sampling"):
        run_task(subject, replace(films, sampling=None), FEW, tmp_path / "other", settings=SETTINGS)


def test_broken_run_folders_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        read_run(tmp_path)
    sample = Sample("a", "p", [], {}, "x", 1.0, "x", "ok", 1)
    with SampleWriter(tmp_path / SAMPLES) as writer:
        writer.add([sample])
        writer.add([replace(sample, id="b")])
        with pytest.raises(InputError, match="another process"), SampleWriter(tmp_path / SAMPLES):
            pass
    (tmp_path / HEADER).write_text(json.dumps({"format": 2}))
    with pytest.raises(InputError, match="format 2"):
        read_run(tmp_path)
    header = {"task": {"items": 2}, "model": "m", "plugins": [], "specs": [], "settings": {}, "device": "d"}
    (tmp_path / HEADER).write_text(json.dumps(header | {"packages": {}, "date": "d", "format": 1}))
    assert list(read_run(tmp_path).samples) == ["a", "b"]
    with SampleWriter(tmp_path / "samples-1.jsonl") as writer:
        writer.add([sample])
    with pytest.raises(InputError, match="'a' twice"):
        read_run(tmp_path)
    (tmp_path / "samples-1.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="line 1"):
        read_run(tmp_path)
