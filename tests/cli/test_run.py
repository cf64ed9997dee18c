"""`vlm-eff run` and `explain`, in process, on a tiny saved model."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from vlm_eff.cli import app


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    Image.effect_noise((80, 60), 90).convert("RGB").save(path)
    return str(path)


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(model_folder: Path, *arguments: str | Path, prompt: str = "what is it?") -> Result:
    return call(
        "run", "--model", model_folder, "--device", "cpu", "--max-new-tokens", 3, "--prompt", prompt, *arguments
    )


def refused(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    assert not result.stdout
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in " ".join(result.stderr.replace("│", " ").split())


def test_json_says_what_was_asked_and_realised(model_folder: Path, picture: str) -> None:
    result = run(model_folder, "--image", picture, "--plugin", "fastv:keep_ratio=0.25", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    prefill = found["stats"]["prefills"][0]
    assert prefill["visual"] == [144]
    assert prefill["n_eq"] == (2 * 144 + 6 * 36) / 8
    assert found["plugins"]["fastv:keep_ratio=0.25"]["method"] == "fastv"
    assert found["answer"]


def test_plugins_are_attached_together(model_folder: Path, picture: str) -> None:
    both = ("--plugin", "uniform_grid:keep_ratio=0.5", "--plugin", "fastv:keep_ratio=0.25")
    result = run(model_folder, "--image", picture, *both, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["stats"]["prefills"][0]["visual_per_layer"] == [72] * 2 + [36] * 6


def test_bare_run_prints_the_answer_alone(model_folder: Path, picture: str) -> None:
    plain = run(model_folder, "--image", picture)
    described = run(model_folder, "--image", picture, "--json")
    assert plain.exit_code == 0, plain.output
    assert plain.stdout == json.loads(described.stdout)["answer"] + "\n"


def test_compare_has_a_row_for_each_plugin(model_folder: Path, picture: str) -> None:
    plugins = ("--plugin", "fastv:keep_ratio=0.5", "--plugin", "uniform_grid:keep_ratio=0.5")
    result = run(model_folder, "--image", picture, *plugins, "--compare", "--pairs", 3)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if "fastv" in line or "uniform" in line or "bare" in line]
    # a narrow terminal breaks the caption
    assert "CPU, ratios only" in " ".join(result.stdout.split())
    assert "90.0" in next(line for line in lines if "fastv" in line)
    assert "72.0" in next(line for line in lines if "uniform_grid" in line)
    timed = run(model_folder, "--image", picture, *plugins, "--compare", "--pairs", 0, "--json")
    arms = json.loads(timed.stdout)["arms"]
    assert [arm["n_eq"] for arm in arms] == [90.0, 72.0]
    assert arms[0]["time_to_first_token"] is None


def test_save_writes_everything(model_folder: Path, picture: str, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "deep"
    result = run(
        model_folder, "--image", picture, "--image", picture, "--plugin", "fastv:keep_count=100", "--save", folder
    )
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in folder.iterdir()) == [
        "answer.txt",
        "overlay-1.png",
        "overlay-2.png",
        "stats.json",
    ]
    stats = json.loads((folder / "stats.json").read_text())
    assert (folder / "answer.txt").read_text() == stats["answer"] + "\n"
    assert stats["stats"]["prefills"][0]["visual"] == [288]
    with Image.open(folder / "overlay-2.png") as drawn:
        assert drawn.size == (384, 288)


def test_save_refuses_a_file_before_loading_the_model(picture: str, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    result = run(tmp_path / "no-model", "--image", picture, "--save", taken)
    refused(result, 1, "is a file")
    assert taken.read_text() == "mine"


def test_usage_errors(model_folder: Path, picture: str) -> None:
    refused(run(model_folder), 2, "no --image", "visual tokens")
    refused(run(model_folder, "--image", picture, prompt=" "), 2, "no --prompt")
    refused(run(model_folder, "--image", picture, "--plugin", "fastw"), 2, "there is no method 'fastw'", "'fastv'")
    refused(run(model_folder, "--image", picture, "--plugin", "fastv:keep=1"), 2, "keep_ratio")
    refused(run(model_folder, "--image", picture, "--compare", "--pairs", 2), 2, "at least 3")
    refused(run(model_folder, "--image", picture, "--compare"), 2, "--compare without --plugin")
    twice = ("--plugin", "fastv", "--plugin", "fastv")
    refused(run(model_folder, "--image", picture, *twice), 2, "twice")


def test_failures_are_one_sentence(model_folder: Path, picture: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(picture).read_bytes()[:200])
    refused(run(model_folder, "--image", tmp_path / "none.png"), 1, "there is no file")
    refused(run(model_folder, "--image", broken), 1, "broken.png cannot be read")
    refused(run(model_folder, "--image", tmp_path), 1, "cannot be read")
    refused(run(tmp_path / "none", "--image", picture), 1, "no folder with a config.json")
    refused(run(model_folder, "--image", picture, "--dtype", "int8"), 1, "bfloat16")
    refused(run(model_folder, "--image", picture, "--device", "moon"), 1, "moon")
    refused(run(model_folder, "--image", picture, "--plugin", "fastv:layer=9"), 1, "layers 0 to 7")


@pytest.mark.parametrize("prompt", ["<img> what is it?", "<image> <image> what is it?", "[IMAGE] what is it?"])
def test_wrong_placeholders_are_explained(model_folder: Path, picture: str, prompt: str) -> None:
    refused(run(model_folder, "--image", picture, prompt=prompt), 1, "placeholder", "chat template")


def test_written_placeholders_are_taken_as_they_are(model_folder: Path, picture: str) -> None:
    template = run(model_folder, "--image", picture, prompt="what is it?")
    written = run(model_folder, "--image", picture, prompt="user: <image> what is it? assistant:")
    assert written.exit_code == 0, written.output
    assert written.stdout == template.stdout


def test_explain_describes_the_model(model_folder: Path, tmp_path: Path) -> None:
    result = call("explain", "--model", model_folder)
    assert result.exit_code == 0, result.output
    assert "llava" in result.stdout
    assert "8 layers" in result.stdout
    refused(call("explain", "--model", tmp_path), 1, "no folder with a config.json")


def test_bundled_model_is_the_default(picture: str) -> None:
    Image.new("RGB", (96, 96), "white").save(picture)
    result = call("run", "--device", "cpu", "--image", picture, "--prompt", "is there a circle?", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["model"] == "bundled model"
    assert found["answer"] in ("yes", "no")
