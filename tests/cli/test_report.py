"""`vlm-eff report`, in process, on runs made here."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.eval.stats.builder import family, header, samples, write
from vlm_eff.cli import app
from vlm_eff.eval.report import plots

BEFORE = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
AFTER_ = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]


def report(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return family(tmp_path, BEFORE, AFTER_)


def test_a_folder_or_a_file(folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "png_of", lambda figure: b"")
    # the bare run is the reference wherever it stands
    result = report(*reversed(folders), "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert not result.stdout and "wrote" in result.stderr
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "Against bare:" in page
    report(*reversed(folders), "--output", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page


def test_markdown_goes_to_stdout_or_a_file(folders: list[Path], tmp_path: Path) -> None:
    result = report(*folders, "--markdown")
    assert result.exit_code == 0 and result.stdout.startswith("# scenes: 4 runs")
    report(*folders, "--markdown", "--output", tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("bare",), 2, "--output"),
        (("bare", "--output", "page.md"), 2, ".html"),
        (("bare", "--output", "no/page.html"), 1, "folder"),
        (("part", "--output", "page.html"), 1, "not finished"),
        (("bare", "other", "--output", "page.html"), 1, "models differ"),
    ],
)
def test_nothing_is_written_when_something_is_wrong(
    folders: list[Path], tmp_path: Path, arguments: tuple[str, ...], code: int, word: str
) -> None:
    write(tmp_path / "part", samples(BEFORE), header(9))
    write(tmp_path / "other", samples(BEFORE), header(8, "fastv", model="other"))
    result = report(*(one if one[0] == "-" else tmp_path / one for one in arguments))
    assert result.exit_code == code, result.output
    assert word in " ".join(result.stderr.replace("│", " ").split()) and "Traceback" not in result.stderr
    assert not list(tmp_path.glob("page*")) and not result.stdout
