"""`vlm-eff eval`, as it is typed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlm_eff.cli.app import app

TASK = ("--task", "scenes:scenes=1")


def test_eval_asks_prints_and_writes(model_folder: Path, tmp_path: Path) -> None:
    command = ["eval", *TASK, "--model", str(model_folder), "--device", "cpu", "--output", str(tmp_path / "out")]
    command += ["--plugin", "uniform_grid:keep_ratio=0.25 + kivi:bits=4,residual=32", "--no-baselines"]
    command += ["--record", str(tmp_path / "r.json")]
    made = CliRunner().invoke(app, [*command, "--json"])
    assert made.exit_code == 0, made.output
    record = json.loads(made.stdout)
    assert record == json.loads((tmp_path / "r.json").read_text())
    assert [row["label"] for row in record["result"]["rows"]] == ["bare", command[10]]
    table = CliRunner().invoke(app, command)
    assert table.exit_code == 0 and "uniform_grid" in table.stdout and "scenes" in table.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "--task"),
        (TASK, 2, "--output"),
        ((*TASK, "--output", "{out}", "--pairs", "2"), 2, "--pairs 2"),
        ((*TASK, "--task", "scenes:split=validation", "--output", "{out}"), 2, "scenes twice"),
        (("--task", "scene", "--output", "{out}"), 2, "scenes"),
        ((*TASK, "--output", "{out}", "--share", "0.5"), 2, "--method"),
        ((*TASK, "--output", "{out}", "--plugin", "fastvv"), 2, "fastv"),
        (("--task", "textvqa", "--output", "{out}"), 1, "folder"),
        ((*TASK, "--output", "{out}", "--record", "{out}/no/r.json"), 1, "not there"),
    ],
)
def test_what_cannot_be_asked_is_said(arguments: tuple[str, ...], code: int, said: str, tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["eval", *(one.format(out=tmp_path / "out") for one in arguments)])
    assert made.exit_code == code and said in made.output, made.output
