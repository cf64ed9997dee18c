"""The command line as a program: help, version, exit codes, and that it does not wait for torch."""

import json
import subprocess
import sys

from typer.testing import CliRunner

import vlm_eff
from vlm_eff.cli import app


def test_version_and_help_do_not_import_torch() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from vlm_eff.cli import app\n"
        "for option in ('--version', '--help'):\n"
        "    result = CliRunner().invoke(app, [option])\n"
        "    assert result.exit_code == 0, result.output\n"
        "    print(result.output)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"vlm-eff {vlm_eff.__version__}" in done.stdout
    assert "methods" in done.stdout


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
