"""`vlm-eff tasks`: every task with its files, metric and options."""

import json

from typer.testing import CliRunner

from vlm_eff.cli import app
from vlm_eff.eval.metrics import METRICS
from vlm_eff.eval.tasks import TASKS
from vlm_eff.eval.tasks.source import BROKEN_TASKS


def test_every_task_is_listed() -> None:
    result = CliRunner().invoke(app, ["tasks", "--json"])
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert set(rows) == set(TASKS)
    assert all(row["metric"] in METRICS and row["about"] and row["splits"] for row in rows.values())
    assert rows["videomme"]["shows"] == "videos" and rows["videomme"]["options"] == {"subtitles": False}
    assert rows["scenes"]["files"] == "" and rows["docvqa"]["submission"]


def test_the_table_shows_files_and_names_what_is_broken(monkeypatch) -> None:
    monkeypatch.setitem(BROKEN_TASKS, "theirs", "ImportError: no such thing")
    result = CliRunner().invoke(app, ["tasks"])
    assert result.exit_code == 0, result.output
    assert "MMBench_DEV_EN.tsv" in result.stdout and "none needed" in result.stdout
    assert "'theirs' cannot be used: ImportError: no such thing" in result.stderr
