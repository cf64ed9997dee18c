"""`vlm-eff compare`, in process, on runs made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.eval.stats.builder import family, header, samples, write
from vlm_eff.cli import app

BEFORE = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
AFTER_ = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]


def compare(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return family(tmp_path, BEFORE, AFTER_)


def test_the_table_says_what_changed(folders: list[Path]) -> None:
    result = compare(*folders, "--by", "family")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    for part in ("62.5 [", "-12.5 [", "2/1", "fastv:keep_ratio=0.5", "even", "hard items", "N = 8 items"):
        assert part in text
    assert "Below uniform_grid:keep_ratio=0.6 (62.5), the best baseline that spends no more: fastv" in text


def test_the_reference_among_the_runs_is_passed_over(folders: list[Path]) -> None:
    assert compare(*folders, folders[0]).stdout == compare(*folders).stdout


def test_json_is_one_document(folders: list[Path]) -> None:
    result = compare(*folders, "--json", "--fail-under", "acc=-0.1,loyalty=0.5")
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert found["rows"][1]["paired"]["worse"] == ["q3", "q4"]
    assert found["missed"] == ["fastv:keep_ratio=0.5: acc is -0.1250, below -0.1"]
    assert "acc is -0.1250" in result.stderr
    assert compare(*folders, "--fail-under", "acc=-0.2").exit_code == 0


def test_labels_are_no_markup(tmp_path: Path) -> None:
    made = [write(tmp_path / "bare", samples(BEFORE, groups={"[red]kind": "[bold]x"}))]
    made.append(write(tmp_path / "it", samples(AFTER_, groups={"[red]kind": "[bold]x"}), header(8, "fastv:[/]")))
    result = compare(*made, "--by", "[red]kind")
    assert result.exit_code == 0, result.output
    assert all(part in result.stdout for part in ("fastv:[/]", "[red]kind", "[bold]x"))


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("bare",), 2, "RUN"),
        (("bare", "nowhere"), 1, "holds no run"),
        (("bare", "bare"), 2, "twice"),
        (("fastv", "bare"), 2, "the bare run first"),
        (("bare", "fastv", "--by", "colour"), 2, "'colour'"),
        (("bare", "fastv", "--fail-under", "speed=1"), 2, "acc_low"),
        (("bare", "part"), 1, "not finished"),
    ],
)
def test_bad_input_is_one_sentence(
    folders: list[Path], tmp_path: Path, arguments: tuple[str, ...], code: int, word: str
) -> None:
    write(tmp_path / "part", samples(BEFORE), header(9, "fastv"))
    result = compare(*(argument if argument[0] == "-" else tmp_path / argument for argument in arguments[:2]),
                     *arguments[2:])  # fmt: skip
    assert result.exit_code == code, result.output
    assert not result.stdout and "Traceback" not in result.stderr
    assert word in " ".join(result.stderr.replace("│", " ").split())
