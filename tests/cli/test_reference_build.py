"""`vlm-eff reference build`: what it says, and what it refuses."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlm_eff.cli import app
from vlm_eff.cli import reference as command
from vlm_eff.core.errors import CapabilityError
from vlm_eff.reference.smol.build import Built


@pytest.fixture
def asked(monkeypatch) -> list[tuple[Path, str]]:
    calls: list[tuple[Path, str]] = []

    def build(folder: Path, dtype: str) -> Built:
        calls.append((folder, dtype))
        return Built(folder, len(calls) == 1, 318_000_000)

    monkeypatch.setattr(command, "build_smol", build)
    return calls


def test_it_says_where_the_model_is_and_how_to_use_it(asked, tmp_path) -> None:
    result = CliRunner().invoke(app, ["reference", "build", "smol"])
    assert result.exit_code == 0, result.output
    assert asked == [(Path.home() / ".cache" / "vlm_eff" / "smol", "float16")]
    assert result.stdout.startswith("built: ") and "318 MB" in result.stdout and "--model smol" in result.stdout
    again = CliRunner().invoke(app, ["reference", "build", "smol", "--folder", str(tmp_path), "--dtype", "bfloat16"])
    assert again.stdout.startswith("already there: ") and f"--model {tmp_path}" in again.stdout
    assert asked[1] == (tmp_path, "bfloat16")
    shown = CliRunner().invoke(app, ["reference", "build", "smol", "--json"])
    assert json.loads(shown.stdout)["built"] is False


def test_errors_are_one_sentence(asked, monkeypatch) -> None:
    result = CliRunner().invoke(app, ["reference", "build", "gpt"])
    assert result.exit_code == 2 and "accepted is smol" in result.stderr

    def missing(*_) -> None:
        raise CapabilityError("package gguf is not installed")

    monkeypatch.setattr(command, "build_smol", missing)
    result = CliRunner().invoke(app, ["reference", "build", "smol"])
    assert result.exit_code == 1 and result.stderr.strip().endswith("vlm-eff: package gguf is not installed")
