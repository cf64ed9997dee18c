"""The example that drives lmms-eval, bare and with a plugin."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "14_evaluate_with_lmms_eval.py"


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE))["main"](limit=3)
    said = capsys.readouterr().out
    assert "bare: exact match" in said
    assert "fastv:keep_ratio=0.5;layer=2: exact match" in said and "avg_n_eq 90.00, avg_flops_ratio 0.62" in said
