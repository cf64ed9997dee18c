"""`vlm-eff kernels`: every operation with its forms, and why kernels cannot run on a device."""

import json
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlm_eff import kernels
from vlm_eff.cli import app
from vlm_eff.kernels import ops


def test_every_operation_is_listed_with_its_forms() -> None:
    result = CliRunner().invoke(app, ["kernels", "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert {row["name"]: tuple(row["forms"]) for row in shown["operations"]} == {
        name: tuple(forms.forms) for name, forms in ops.operations().items()
    }
    assert "needs a CUDA device" in shown["why_no_kernels"]
    assert all(row["auto"] == "torch" and row["summary"] for row in shown["operations"])


def test_the_table_says_why_no_kernel_runs() -> None:
    result = CliRunner().invoke(app, ["kernels", "--device", "cpu"])
    assert result.exit_code == 0
    for name in ops.operations():
        assert name in result.stdout
    assert "no kernel runs on cpu" in result.stderr


@pytest.mark.parametrize("device", ["moon", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    result = CliRunner().invoke(app, ["kernels", "--device", device])
    assert result.exit_code == 2
    assert device in result.stderr
    assert "Choose another" in result.stderr


def test_every_operation_can_be_imported_from_one_place() -> None:
    for path in Path(kernels.__file__).parent.glob("*/op.py"):
        import_module(f"vlm_eff.kernels.{path.parent.name}.op")
    for name in ops.operations():
        assert getattr(ops, name).__name__ == name
        assert name in ops.__all__
