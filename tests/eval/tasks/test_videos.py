"""What each reader of video benchmarks makes of its files, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.eval.tasks.official import WRITERS, put, put_json, put_table
from vlm_eff.core.errors import InputError
from vlm_eff.eval.tasks import Footage, Item, Task, load_task
from vlm_eff.eval.tasks.footage import read_srt
from vlm_eff.video.sampling import Sampling


def read(name: str, folder: Path, split: str | None = None, **options: object) -> Task:
    WRITERS[name](folder)
    return load_task(name, folder, split, **options)  # type: ignore[arg-type]


def clip(item: Item) -> Footage:
    (footage,) = item.media
    assert isinstance(footage, Footage)
    return footage


def test_videomme_with_and_without_subtitles(tmp_path: Path) -> None:
    bare, told = read("videomme", tmp_path), load_task("videomme", tmp_path, subtitles=True)
    assert [item.cluster for item in bare.items] == ["fFjv93ACGo8", "fFjv93ACGo8", "N1cdUjctpG8"]
    assert bare.items[0].gold == {"answer": "C", "options": ["One.", "Two.", "Three.", "Four."]}
    assert bare.items[0].prompt.startswith("How many?\nA. One.\nB. Two.")
    assert bare.items[0].groups["duration"] == "short" and bare.items[0].groups["subtitles"] == "without"
    # the ending that is on disk, else the usual one
    assert [clip(item).path.name for item in bare.items[1:]] == ["fFjv93ACGo8.mp4", "N1cdUjctpG8.mkv"]
    assert told.items[0].prompt.startswith("This video's subtitles are listed below:\nHello there.\nBye.\nHow many?")
    assert "No subtitles available." in told.items[2].prompt and told.items[0].groups["subtitles"] == "with"
    assert told.version != bare.version


def test_videomme_from_a_table(tmp_path: Path) -> None:
    row = {"index": 5, "video": "abc", "question": "How many?", "candidates": "['A. 1', 'B. 2']", "answer": "B"}
    put_table(tmp_path / "Video-MME.tsv", [row])
    (item,) = load_task("videomme", tmp_path).items
    assert item.id == "5" and item.gold == {"answer": "B", "options": ["1", "2"]}


def test_mvbench_has_three_kinds_of_media(tmp_path: Path) -> None:
    items = {item.id: item for item in read("mvbench", tmp_path).items}
    assert set(items) == {"action_count-000", "action_count-001", "action_sequence-000", "episodic_reasoning-000"}
    gif, film, frames = (
        clip(items[f"{name}-000"]) for name in ("action_count", "action_sequence", "episodic_reasoning")
    )
    assert gif.path.name == "video_1.gif" and (gif.start, gif.fps) == (None, None)
    assert (film.start, film.end, film.fps) == (11.1, 17.2, None)
    assert (frames.start, frames.end, frames.fps) == (0.0, 4.0, 3.0) and frames.path.is_dir()
    assert items["action_count-000"].gold["answer"] == "B" and items["action_count-000"].groups == {
        "task": "action_count"
    }
    assert items["action_count-000"].cluster == items["action_count-001"].cluster


def test_nextqa_finds_videos_by_its_map(tmp_path: Path) -> None:
    items = read("nextqa", tmp_path).items
    assert [item.id for item in items] == ["4010069381-0", "4010069381-1", "77-0"]
    assert clip(items[0]).path == tmp_path / "NExTVideo" / "1164" / "4010069381.mp4"
    assert items[0].gold["answer"] == "E" and items[1].groups == {"type": "TP"}
    assert items[0].prompt.startswith("why did the baby cry?\nA. hungry\n")


def test_egoschema_answers_are_public_for_a_subset(tmp_path: Path) -> None:
    (item,) = read("egoschema", tmp_path).items
    assert item.id == item.cluster == "u2" and item.gold["answer"] == "D"
    full = load_task("egoschema", tmp_path, "full")
    assert [one.id for one in full.items] == ["u1", "u2"] and not full.scored
    put_json(tmp_path / "subset_answers.json", {"u2": 3, "u9": 1})
    with pytest.raises(InputError, match="1 answers without their question, the first is 'u9'"):
        load_task("egoschema", tmp_path)


def test_mlvu_leaves_out_what_needs_a_judge(tmp_path: Path) -> None:
    items = read("mlvu", tmp_path).items
    assert [item.id for item in items] == ["1_plotQA-0000", "1_plotQA-0001", "4_count-0000", "4_count-0001"]
    assert items[2].groups == {"task": "count"} and items[0].gold["answer"] == "B"
    assert clip(items[0]).path == tmp_path / "video" / "1_plotQA" / "plotQA_1.mp4"


def test_longvideobench_times_its_subtitles_from_the_start_of_the_video(tmp_path: Path) -> None:
    told = read("longvideobench", tmp_path)
    first = "This video's subtitles are listed below:\n[1.5s] hello\n[5.0s] again\nWhat appears?\nA. Yes.\n"
    assert told.items[0].prompt.startswith(first)
    assert [item.gold["answer"] for item in told.items] == ["A", "C"]
    assert told.items[0].groups == {"duration_group": "15", "question_category": "T2A"}
    assert load_task("longvideobench", tmp_path, subtitles=False).items[0].prompt.startswith("What appears?")
    assert not load_task("longvideobench", tmp_path, "test").scored
    (tmp_path / "subtitles" / "86CxyhFV9MI_en.json").unlink()
    with pytest.raises(InputError, match="86CxyhFV9MI_en"):
        load_task("longvideobench", tmp_path)


def test_another_choice_of_frames_is_another_version(tmp_path: Path) -> None:
    usual, other = read("mvbench", tmp_path), load_task("mvbench", tmp_path, sampling=Sampling(frames=4))
    assert usual.version.endswith(" convention=mvbench frames=8 on_short=repeat")
    assert load_task("mvbench", tmp_path, frames=4).sampling == Sampling.named("mvbench", frames=4)
    assert other.sampling == Sampling(frames=4) and other.version != usual.version and usual.digest == other.digest


def test_frames_are_a_limit_where_the_convention_takes_one(tmp_path: Path) -> None:
    task = read("longvideobench", tmp_path, frames=16)
    assert task.sampling is not None and task.sampling.choose(total=300, fps=30) == [30 * n for n in range(10)]


def test_subtitles_that_are_none_are_refused(tmp_path: Path) -> None:
    assert read_srt(put(tmp_path / "empty.srt", "")) == []
    with pytest.raises(InputError, match="a block without times: 'once upon'"):
        read_srt(put(tmp_path / "tale.srt", "once upon\n\na time\n"))
