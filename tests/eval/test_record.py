"""Records that lack something cannot be made; files are written in full or not at all."""

from dataclasses import replace
from pathlib import Path

import pytest

from vlm_eff.core.errors import InputError
from vlm_eff.core.files import make_folder, write_file
from vlm_eff.eval.record import Record, read_record

RECORD = Record(
    task="easy-vqa",
    task_version="1.0",
    model="bundled",
    config={"pairs": 3},
    device="a CPU",
    n=5,
    result={"accuracy": 0.5},
)


def test_record_round_trips(tmp_path: Path) -> None:
    path = RECORD.write(tmp_path / "record.json")
    assert read_record(path) == RECORD
    assert RECORD.packages["torch"]
    assert len(RECORD.date) == 10


@pytest.mark.parametrize("name", ["task", "task_version", "model", "config", "device", "n", "result", "packages"])
def test_record_without_a_part_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"without {name}"):
        replace(RECORD, **{name: type(getattr(RECORD, name))()})


def test_unreadable_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    for text in ("", "[]", '{"task": "easy-vqa"}'):
        path.write_text(text)
        with pytest.raises(InputError):
            read_record(path)


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_file(tmp_path / "answer.txt", "old")

    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["answer.txt"]


def test_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for folder in (taken, taken / "deeper"):
        with pytest.raises(InputError, match="is a file"):
            make_folder(folder)
    assert make_folder(tmp_path / "a" / "b").is_dir()
