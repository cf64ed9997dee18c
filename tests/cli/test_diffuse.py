"""`vlm-eff diffuse`, in process, on a tiny saved pipeline and on the bundled one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tests.tiny.pipelines import make_pipeline
from vlm_eff.cli import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline")
    make_pipeline("dit").pipe.save_pretrained(path)
    return path


def diffuse(model: Path | str, *arguments: str | Path, steps: int = 4) -> Result:
    given = ["diffuse", "--model", model, "--device", "cpu", "--steps", steps, *arguments]
    return CliRunner().invoke(app, [str(argument) for argument in given])


def test_a_table_has_each_plugin_beside_fewer_steps(folder: Path, tmp_path: Path) -> None:
    plugins = ("--plugin", "forecast:interval=2", "--plugin", "forecast:interval=1")
    result = diffuse(folder, "--class", "3", "--compare", *plugins, "--save", tmp_path)
    assert result.exit_code == 0, result.output
    rows = {line.split("│")[1].strip(): line for line in result.stdout.splitlines() if "│" in line}
    assert "#.#." in rows["forecast:interval=2"] and "50%" in rows["forecast:interval=2"]
    assert "inf dB" in rows["forecast:interval=1"] and "100%" in rows["forecast:interval=1"]
    assert "fewer steps: 2" in rows
    found = json.loads((tmp_path / "compare.json").read_text())
    assert [arm["evaluations"] for arm in found["arms"]] == [2.0, 4.0, 2.0]
    with Image.open(tmp_path / "compare.png") as sheet:
        assert sheet.size[1] > 4 * 192


def test_a_run_writes_pictures_and_says_what_it_cost(folder: Path, tmp_path: Path) -> None:
    asked = ("--class", "3", "--class", "5", "--plugin", "forecast", "--save", tmp_path, "--json")
    result = diffuse(folder, *asked)
    assert result.exit_code == 0, result.output
    run = json.loads(result.stdout)["stats"]["runs"][0]
    assert run["evaluations"] == 2.0 and run["evaluations_bare"] == 4.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["picture-1.png", "picture-2.png", "stats.json"]
    plain = diffuse(folder, "--class", "3", "--plugin", "forecast")
    assert "2.00 computed (50%)" in plain.stdout and "not saved" in plain.stdout


def test_the_bundled_model_draws(tmp_path: Path) -> None:
    result = diffuse("small-unet", "--class", "3", "--plugin", "forecast:evaluations=4", "--compare", steps=8)
    assert result.exit_code == 0, result.output
    assert "fewer steps: 4" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("--compare", "--class", "3"), 2, "--compare without --plugin"),
        (("--class", "3", "--plugin", "forecats"), 2, "Did you mean 'forecast'"),
        (("--class", "3", "--plugin", "fastv"), 1, "methods of the room `diffusion`"),
        (("--plugin", "forecast"), 1, "neither a prompt nor classes"),
        (("--class", "3", "--prompt", "a ring"), 1, "a prompt and classes"),
        (("--class", "3", "--plugin", "forecast", "--compare", "--pairs", "2"), 2, "at least 3"),
        (("--class", "3", "--device", "tpu"), 1, "tpu"),
    ],
)
def test_mistakes_are_explained(folder: Path, arguments: tuple[str, ...], code: int, word: str) -> None:
    result = diffuse(folder, *arguments)
    assert result.exit_code == code and word in result.output, result.output


def test_a_folder_without_a_pipeline_is_refused(tmp_path: Path) -> None:
    result = diffuse(tmp_path, "--class", "3")
    assert result.exit_code == 1 and "cannot load" in result.output
    assert "small-unet" in diffuse("small-unet", "--prompt", "a ring").output
