"""The GPU script from end to end without a GPU: every step of every operation runs, tiny, in the forms of PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import OPERATIONS
from vlm_eff.eval.record import Record, read_record

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_kernels.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "error", str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)


@pytest.mark.slow
def test_a_dry_run_reaches_every_step(tmp_path: Path) -> None:
    output = tmp_path / "record.json"
    made = run("--dry-run", "--output", str(output))
    assert made.returncode == 0, made.stdout + made.stderr
    record: Record = read_record(output)
    assert record.config["dry_run"] and record.config["backend"] == "torch"
    for kind in ("check", "time"):
        assert {row["op"] for row in record.result if row["kind"] == kind} >= set(OPERATIONS) - {"ceilings"}
    goals = {goal["goal"] for row in record.result for goal in row.get("goals", [])}
    assert goals == {
        "at least 2.2 times faster than sdpa",
        "at least 65% of the measured copy rate",
        "at most 60 us",
        "at least 5 times faster than eager",
        "at least 2.5 times faster than sdpa",
        "at least 1 times faster than flex",
        "at least 55% of the measured matmul rate",
        "at least 60% of the measured copy rate",
    }
    assert all(goal["met"] is None for row in record.result for goal in row.get("goals", []))
    assert "1.09x / 1.56x / 2.35x" in made.stdout


def test_checks_run_in_processes_of_their_own(tmp_path: Path) -> None:
    output = tmp_path / "record.json"
    made = run("--dry-run", "--output", str(output), "--only", "compact", "--phase", "checks", "--processes", "2")
    assert made.returncode == 0, made.stdout + made.stderr
    assert {(row["op"], row["kind"]) for row in read_record(output).result} == {("compact", "check")}


def test_a_run_that_is_cut_off_keeps_what_it_has(tmp_path: Path) -> None:
    output = tmp_path / "record.json"
    made = run("--dry-run", "--output", str(output), "--only", "sparse_attention", "--budget-seconds", "1.5")
    assert made.returncode == 0, made.stdout + made.stderr
    rows = read_record(output).result
    assert rows[-1]["kind"] == "note" and "ended after 1.5 s" in made.stdout


@pytest.mark.parametrize(
    ("arguments", "said"), [([], "no CUDA device"), (["--dry-run", "--only", "magic"], "no such operation")]
)
def test_what_cannot_be_done_is_said(arguments: list[str], said: str) -> None:
    made = run(*arguments)
    assert made.returncode == 2 and said in " ".join(made.stderr.split()).replace("│ ", "")


def test_the_script_needs_no_transformers() -> None:
    """A GPU machine may have another version than the models of this package ask for."""
    code = "import sys; sys.path.insert(0, 'benchmarks'); import gpu_kernels; assert 'transformers' not in sys.modules"
    made = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
