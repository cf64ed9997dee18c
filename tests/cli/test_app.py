"""The command line as a program: help, version, exit codes."""

import json
import tomllib
from importlib import import_module, metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vlm_eff
from vlm_eff.cli import app
from vlm_eff.core import registry


def test_version_and_help() -> None:
    said = CliRunner().invoke(app, ["--version"])
    assert said.exit_code == 0 and said.stdout == f"vlm-eff {vlm_eff.__version__}\n"
    assert "methods" in CliRunner().invoke(app, ["--help"]).stdout


def test_unknown_command_is_a_usage_error() -> None:
    result = CliRunner().invoke(app, ["prune"])
    assert result.exit_code == 2
    assert "prune" in result.stderr
    assert not result.stdout


def test_methods_lists_what_is_registered() -> None:
    result = CliRunner().invoke(app, ["methods", "--json"])
    assert result.exit_code == 0
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert set(rows) == set(vlm_eff.methods())
    fastv = rows["fastv"]
    assert fastv["room"] == "tokens"
    assert fastv["paper"] == "arXiv:2403.06764"
    assert fastv["training_free"] is True
    assert "llava" in fastv["families"]
    assert fastv["summary"].startswith("Keep the visual tokens")


def test_methods_table_names_every_method() -> None:
    result = CliRunner().invoke(app, ["methods"])
    assert result.exit_code == 0
    for name in vlm_eff.methods():
        assert name in result.stdout


def test_installed_script_points_at_the_command_line() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["vlm-eff"].partition(":")
    assert callable(getattr(import_module(module), name))


def test_a_broken_package_is_named_and_harms_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    point = metadata.EntryPoint("their_method", "no_such_package:method", "vlm_eff.plugins")
    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: [point])
    monkeypatch.setattr(registry, "BROKEN_ENTRY_POINTS", broken := {})
    monkeypatch.setattr("vlm_eff.cli.methods.BROKEN_ENTRY_POINTS", broken)
    result = CliRunner().invoke(app, ["methods", "--json"])
    assert result.exit_code == 0
    assert "fastv" in {row["name"] for row in json.loads(result.stdout)}
    assert "'their_method'" in result.stderr and "no_such_package" in result.stderr
