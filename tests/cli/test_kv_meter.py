"""`vlm-eff kv-meter`, in process, on a tiny saved model."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from vlm_eff.cli import app


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    Image.effect_noise((80, 60), 90).convert("RGB").save(path)
    return str(path)


def meter(model_folder: Path, *arguments: str | Path, prompt: str = "what is it?") -> Result:
    given = ["kv-meter", "--model", model_folder, "--device", "cpu", "--steps", 2, "--prompt", prompt, *arguments]
    return CliRunner().invoke(app, [str(argument) for argument in given])


def test_json_holds_every_policy(model_folder: Path, picture: str) -> None:
    plugins = ("--plugin", "random_evict:keep_ratio=1.0", "--plugin", "random_evict:keep_ratio=0.5")
    result = meter(model_folder, "--image", picture, *plugins, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    everything, half = found["policies"].values()
    assert list(found["policies"]) == ["random_evict:keep_ratio=1.0", "random_evict:keep_ratio=0.5"]
    assert set(everything["error"]) == {0.0} and len(half["error"]) == len(half["heads"]) == 8
    assert min(half["error"]) > 0 and half["bytes"] < everything["bytes"] == found["bytes"]
    assert found["steps"] == 2


def test_a_table_has_the_smallest_error_first_and_a_plot_is_written(
    model_folder: Path, picture: str, tmp_path: Path
) -> None:
    plugins = ("--plugin", "random_evict:keep_ratio=0.2", "--plugin", "random_evict:keep_ratio=1.0")
    result = meter(model_folder, "--image", picture, *plugins, "--plot", tmp_path / "out.png")
    assert result.exit_code == 0, result.output
    shown = [line for line in result.stdout.splitlines() if "random_evict" in line]
    assert "=1.0" in shown[0] and "100.0%" in shown[0] and "0.0000" in shown[0]
    assert "=0.2" in shown[1]
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("--plugin", "snapkv"), 2, "--image"),
        (("--image", "PICTURE"), 2, "--plugin"),
        (("--image", "PICTURE", "--plugin", "fastv"), 2, "acts elsewhere than on the cache"),
        (("--image", "PICTURE", "--plugin", "snapkw"), 2, "Did you mean 'snapkv'"),
        (("--image", "PICTURE", "--plugin", "snapkv", "--plugin", "snapkv"), 2, "twice"),
        (("--image", "PICTURE", "--plugin", "snapkv + streaming_llm"), 1, "snapkv"),
        (("--image", "nowhere.png", "--plugin", "snapkv"), 1, "there is no file"),
        (("--image", "PICTURE", "--plugin", "snapkv", "--plot", "no/such/folder.png"), 1, "folder"),
    ],
)
def test_bad_input_is_one_sentence(
    model_folder: Path, picture: str, arguments: tuple[str, ...], code: int, word: str
) -> None:
    result = meter(model_folder, *(picture if one == "PICTURE" else one for one in arguments))
    assert result.exit_code == code, result.output
    assert not result.stdout and "Traceback" not in result.stderr
    assert word in " ".join(result.stderr.replace("│", " ").split())


def test_a_plot_without_matplotlib_says_what_to_install(
    model_folder: Path, picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any, **named: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    result = meter(model_folder, "--image", picture, "--plugin", "snapkv", "--plot", tmp_path / "out.png")
    assert result.exit_code == 1
    assert "vlm-eff[eval]" in result.stderr and not (tmp_path / "out.png").exists()
