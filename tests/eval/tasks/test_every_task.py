"""What holds of every task that is registered, on small folders in its layout."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.eval.tasks.official import WRITERS
from vlm_eff.core.errors import ConfigError, InputError
from vlm_eff.eval.metrics import METRICS, Scored
from vlm_eff.eval.tasks import TASKS, Footage, Task, load_task
from vlm_eff.eval.tasks.source import TaskSource

BUILT_IN = [name for name in TASKS if TASKS.get(name).files]


def read(name: str, folder: Path, **options: object) -> Task:
    WRITERS[name](folder)
    return load_task(name, folder, **options)  # type: ignore[arg-type]


def right_answer(task: Task, place: int) -> str:
    gold = task.items[place].gold
    if "box" in gold:
        (x1, y1, x2, y2), (width, height) = gold["box"], gold["size"]
        return f"[{x1 / width}, {y1 / height}, {x2 / width}, {y2 / height}]"
    return str(gold["answer"] if "answer" in gold else gold["answers"][-1])


def test_every_reader_has_a_folder_here() -> None:
    assert set(BUILT_IN) == set(WRITERS)


@pytest.mark.parametrize("name", BUILT_IN)
def test_items_are_whole_and_scored(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", None)
    task = read(name, tmp_path)
    source, metric = TASKS.get(name), METRICS.get(task.metric)
    assert (task.scored and len(task.items) > 1) or name in ("seed", "scienceqa", "egoschema")
    assert len({item.id for item in task.items}) == len(task.items)
    assert (task.sampling is not None) == any(isinstance(one, Footage) for item in task.items for one in item.media)
    scored = []
    for place, item in enumerate(task.items):
        assert item.cluster and item.media and "<image" not in item.prompt
        metric.check(item.gold)
        assert metric.score("", item.gold, item_id=item.id).value == 0
        assert metric.score("zebra!", item.gold, item_id=item.id).value == 0
        right = metric.score(right_answer(task, place), item.gold, item_id=item.id)
        assert right.value >= 0.6 and right.status == "ok", (item, right)
        scored.append(Scored(item.id, right, item.gold, item.cluster, item.groups))
    assert metric.aggregate(scored)["accuracy"] >= 0.6
    again = load_task(name, tmp_path)
    assert again.digest == task.digest and again.version == task.version
    # the prompt is part of the version
    plainly = load_task(name, tmp_path, style=list(source.styles)[-1])
    assert plainly.version != task.version and plainly.digest != task.digest


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_folder_that_is_empty_or_not_there_says_what_belongs_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Accepted: "):
        load_task(name, tmp_path)
    with pytest.raises(InputError, match="is not there"):
        load_task(name, tmp_path / "nowhere")
    with pytest.raises(InputError, match="without a folder") as error:
        load_task(name)
    assert TASKS.get(name).files in str(error.value)


@pytest.mark.parametrize("name", ["mme", "mmbench"])
def test_a_limit_keeps_whole_what_is_scored_together(name: str, tmp_path: Path) -> None:
    whole = read(name, tmp_path)
    assert TASKS.get(name).whole is not None and whole.whole
    for limit in range(1, len(whole.items) + 1):
        task = load_task(name, tmp_path, limit=limit)
        metric = METRICS.get(task.metric)
        scored = [
            Scored(i.id, metric.score("no", i.gold, item_id=i.id), i.gold, i.cluster, i.groups) for i in task.items
        ]
        found = metric.aggregate(scored)
        missing = found["incomplete"] if name == "mmbench" else found["categories"]["existence"]["unpaired"]
        assert missing == 0 and task.items == whole.items[: len(task.items)]
        assert len(task.items) <= max(limit, 3)


def test_a_limit_stops_reading(tmp_path: Path) -> None:
    WRITERS["chartqa"](tmp_path)
    (tmp_path / "test" / "test_augmented.json").write_text("broken")
    assert [item.id for item in load_task("chartqa", tmp_path, limit=1).items] == ["human-00000"]
    with pytest.raises(InputError, match=r"test_augmented\.json, line 1"):
        load_task("chartqa", tmp_path)


def test_what_is_not_known_is_refused_with_what_is(tmp_path: Path) -> None:
    WRITERS["vqav2"](tmp_path)
    for options, accepted in (
        ({"split": "validation"}, "val, train, test-dev, test"),
        ({"style": "long"}, "short, plain"),
        ({"subtitles": True}, "no option"),
        ({"limit": 0}, "at least 1"),
        ({"frames": 4}, "shows no videos"),
        ({"metric": "vqaa"}, "Did you mean 'vqa'"),
        ({"sampling": TASKS.get("mvbench").sampling}, "shows no videos"),
    ):
        with pytest.raises(ConfigError, match=accepted):
            load_task("vqav2", tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Did you mean 'vqav2'"):
        load_task("vqa-v2", tmp_path)


class _Point:
    def __init__(self, name: str, made: object) -> None:
        self.name, self.made = name, made

    def load(self) -> object:
        if isinstance(self.made, Exception):
            raise self.made
        return self.made


def test_broken_tasks_of_others_are_named_and_hide_no_healthy_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlm_eff.core.registry import Registry
    from vlm_eff.eval.tasks import source

    healthy: TaskSource = TASKS.get("scenes")
    points = [_Point("bad", ImportError("no such thing")), _Point("odd", print), _Point("theirs", healthy)]
    registry: Registry[TaskSource] = Registry("task")
    monkeypatch.setattr(source, "TASKS", registry)
    monkeypatch.setattr(source, "BROKEN_TASKS", {})
    monkeypatch.setattr(source.metadata, "entry_points", lambda group: points if group == "vlm_eff.tasks" else [])
    task = load_task("theirs", scenes=1)
    assert task.name == "theirs" and list(registry) == ["theirs"]
    assert set(source.BROKEN_TASKS) == {"bad", "odd"} and "no such thing" in source.BROKEN_TASKS["bad"]
