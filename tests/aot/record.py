"""Compile the cases and rewrite what is expected of them.

python -m tests.aot.record                      # every operation
python -m tests.aot.record window_scores tome   # these
python -m tests.aot.record window_scores --show # print only, with what is wrong
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
import typer

from tests.aot.case import Case, cases, operations
from tests.aot.reading import Reading, readings
from tests.aot.stub import cache, compiled
from tests.aot.verdict import FOLDER, budgets, expected, limits


def _line(case: Case, name: str, arch: int, reading: Reading) -> str:
    expect = case.kernels.get(reading.name)
    spent = reading.per_element(expect.elements) if expect else []
    return (
        f"  {name:34} sm_{arch:<4} {reading.registers:3} registers  {reading.shared / 1024:5.0f} KB  "
        f"loops {list(reading.loops)} per element {[round(one, 2) for one in spent]}  {' '.join(reading.watched())}"
    )


def record(operation: str, *, write: bool) -> list[str]:
    """Compile all cases of one operation, print what they take, return what is wrong."""
    wrong: list[str] = []
    rows: dict[str, Any] = {}
    for name, case in cases(operation).items():
        typer.echo(f"{operation}: {name}")
        rows[name] = {}
        for arch in case.archs:
            found = readings(compiled(case.call, arch))
            for kernel, reading in found.items():
                typer.echo(_line(case, kernel, arch, reading))
            wrong += [f"{name} sm_{arch}: {one}" for one in limits(case, arch, found) + budgets(case, found)]
            rows[name][str(arch)] = expected(case, found)
    if write and not wrong:
        FOLDER.mkdir(exist_ok=True)
        text = json.dumps({"triton": triton.__version__, "cases": rows}, indent=1) + "\n"
        (FOLDER / f"{operation}.json").write_text(text, encoding="utf-8")
    return wrong


def main(arguments: list[str]) -> int:
    """Record the operations named, or all; 1 if something breaks a limit, which is not written down."""
    chosen = [one for one in arguments if not one.startswith("--")] or operations()
    wrong = []
    with tempfile.TemporaryDirectory() as folder, cache(Path(folder)):
        for operation in chosen:
            wrong += record(operation, write="--show" not in arguments)
    for one in wrong:
        typer.echo(f"WRONG {one}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
