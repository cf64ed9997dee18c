"""Every operation of vlm_eff.kernels on a GPU: right against float64 in half types, then timed against its rivals.

    PYTHONPATH=. python benchmarks/gpu_kernels.py                       # an H100 or H200: about nine minutes
    PYTHONPATH=. python benchmarks/gpu_kernels.py --only packed_decode --keep
    PYTHONPATH=. python benchmarks/gpu_kernels.py --dry-run             # no GPU: tiny, through the forms of PyTorch

Checks of all operations come before any timing, each operation in a process of its own. Rows are written as they are
made, so that a run that is cut off keeps what it has. Times are medians of interleaved rounds on a cold cache; goals
are ratios within one run, against ceilings measured in the same run. An error of one step is a row and the rest goes
on; after an error that a device does not survive, the rest goes on in a new process.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from enum import StrEnum
from pathlib import Path

import torch
import typer
from gpu import OPERATIONS
from gpu.apart import run_checks
from gpu.session import OutOfTime, Session
from gpu.summary import failed, summary
from gpu.timing import fatal

from vlm_eff.eval.kernel_bounds import bounds_table

OUTPUT = Path(__file__).parent / "results" / "gpu_kernels.json"


class Phase(StrEnum):
    """Which steps run."""

    ALL = "all"
    CHECKS = "checks"
    TIMES = "times"


def run_steps(session: Session, names: list[str], phase: Phase) -> list[str]:
    """Run steps of one phase here; returns the operations that a lost device kept from running."""
    for place, name in enumerate(names):
        try:
            steps = importlib.import_module(f"gpu.{name}").STEPS
        except Exception as error:
            # once is enough: the checks are asked first
            if not any(row["op"] == name and row["kind"] == "error" for row in session.rows):
                session.add(name, "import", "error", error=f"{type(error).__name__}: {error}")
            continue
        for step in steps:
            if step.__name__.startswith("check") == (phase is Phase.CHECKS):
                error = session.attempt(name, step)
                if error is not None and fatal(error):
                    return names[place + 1 :]
    return []


def run(session: Session, names: list[str], phase: Phase, processes: int) -> list[str]:
    """Run both phases, or one; returns the operations whose timing a lost device kept from running."""
    lost: list[str] = []
    checked = [name for name in names if name != "ceilings"]
    if phase is not Phase.TIMES and processes:
        lost = run_checks(session, checked, __file__, processes)
    elif phase is not Phase.TIMES:
        run_steps(session, checked, Phase.CHECKS)
    if phase is Phase.CHECKS:
        return []
    # the shares of every operation are shares of the ceilings
    return run_steps(session, ["ceilings", *(name for name in checked if name not in lost)], Phase.TIMES)


def go_on(session: Session, rest: list[str]) -> bool:
    """Time the rest in a new process, on a device that knows nothing of the error; True if all went well."""
    arguments = [one for name in rest for one in ("--only", name)]
    arguments += ["--phase", "times", "--keep", "--output", str(session.output)]
    arguments += ["--budget-seconds", str(session.left()), *(["--quick"] if session.quick else [])]
    return subprocess.run([sys.executable, __file__, *arguments], check=False).returncode == 0


def main(
    only: list[str] = typer.Option([], help="Operations to run; all if left out."),  # noqa: B008
    quick: bool = typer.Option(False, help="Fewer rounds, fewer sizes."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Tiny shapes on the CPU; writes nothing unless told where."),
    budget_seconds: float = typer.Option(540.0, help="End after this long, with what there is."),
    output: Path | None = typer.Option(None, help="Where the record goes."),  # noqa: B008
    keep: bool = typer.Option(False, help="Keep other rows of the record that is there."),
    phase: Phase = typer.Option(Phase.ALL, help="Only the checks, or only the timings."),  # noqa: B008
    processes: int | None = typer.Option(None, help="Checks at a time, each in a process; 0: all in this one."),
    quiet: bool = typer.Option(False, help="Print nothing."),
) -> None:
    """Check and time; exits with 1 if something is wrong or failed."""
    if not dry_run and not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA device here; --dry-run tries the script on a CPU")
    unknown = set(only) - set(OPERATIONS)
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: no such operation; one of {', '.join(OPERATIONS)}")
    names = [name for name in OPERATIONS if not only or name in only]
    if output is None:
        output = Path(tempfile.mkdtemp()) / OUTPUT.name if dry_run else OUTPUT
    device = torch.device("cpu" if dry_run else "cuda")
    session = Session(device, output, dry=dry_run, quick=quick, budget=budget_seconds)
    if keep:
        kinds = {Phase.ALL: ("check", "time", "error"), Phase.CHECKS: ("check",), Phase.TIMES: ("time",)}[phase]
        session.keep(["ceilings", *names], kinds)
    rest: list[str] = []
    try:
        with session.limited(), torch.no_grad():
            rest = run(session, names, phase, (0 if dry_run else 8) if processes is None else processes)
    except OutOfTime:
        session.add("run", "budget", "note", text=f"ended after {budget_seconds:g} s; what is missing was not run")
    session.write()
    if not quiet:
        typer.echo(f"{summary(session.rows)}\n\n{bounds_table()}\n\n{output}")
    well = not failed(session.rows)
    if rest and session.left() > 30:
        well = go_on(session, rest) and well
    raise typer.Exit(int(not well))


if __name__ == "__main__":
    typer.run(main)
