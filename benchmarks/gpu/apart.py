"""Checks in processes of their own, several at a time.

Most of a check's time is the compiler's, on one core; and what a kernel does to the device's memory, or to its process,
should harm no other operation. The compiled kernels stay in Triton's cache on disk for the timings that follow.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vlm_eff.core.errors import InputError
from vlm_eff.eval.record import read_record

from .session import Session

_WAIT = 0.2


def run_checks(session: Session, names: list[str], script: str, processes: int) -> list[str]:
    """Run the checks of every operation; returns those whose process did not come to its end."""
    lost: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        waiting, running = list(names), {}
        try:
            while waiting or running:
                while waiting and len(running) < processes:
                    name = waiting.pop(0)
                    running[name] = _start(session, name, script, Path(folder) / f"{name}.json")
                time.sleep(_WAIT)
                for name in [name for name, child in running.items() if child.poll() is not None]:
                    child = running.pop(name)
                    if not _collect(session, name, Path(folder) / f"{name}.json", child.returncode):
                        lost.append(name)
        finally:
            for name, child in running.items():
                child.kill()
                child.wait()
                # what it had written by then
                _collect(session, name, Path(folder) / f"{name}.json", child.returncode)
    return lost


def _start(session: Session, name: str, script: str, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, script, "--only", name, "--phase", "checks", "--processes", "0", "--quiet"]
    command += ["--output", str(output), "--budget-seconds", str(max(session.left(), 1.0))]
    return subprocess.Popen(command + (["--dry-run"] if session.dry else []))


def _collect(session: Session, name: str, output: Path, code: int) -> bool:
    """Take over the rows of a process; False if it ended before it was done."""
    try:
        session.rows += read_record(output).result
    except InputError:
        code = code or -1
    # 1 says that something is wrong, which the rows say themselves
    done = code in (0, 1) and not any(row["op"] == name and row.get("fatal") for row in session.rows)
    if not done:
        session.add(name, "checks", "error", error=f"the process of these checks ended with {code}", fatal=True)
    session.write()
    return done
