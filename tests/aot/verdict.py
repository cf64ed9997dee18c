"""What is wrong with a compiled case: against the limits of the machine, and against what was recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import triton

from tests.aot.case import Case, Expect
from tests.aot.reading import Reading
from vlm_eff.kernels.tiles import SHARED_MEMORY

FOLDER = Path(__file__).parent / "expectations"
# another patch of the assembler may move a number a little without any harm
SLACK = 1.10
_COLUMNS = 512


def limits(case: Case, arch: int, found: dict[str, Reading]) -> list[str]:
    """What no version of triton may break: stack, spills, shared memory, opcodes. Empty if all is well."""
    wrong = [] if found else ["nothing was launched"]
    named = {name.partition("#")[0] for name in found}
    wrong += [f"{name}: named by the case, never launched" for name in case.kernels if name not in named]
    for name, reading in found.items():
        expect = case.kernels.get(name.partition("#")[0], Expect())
        broken = {
            f"{reading.stack} bytes of stack": reading.stack > 0,
            f"{reading.spills} loads and stores of spilled registers": reading.spills > 0,
            f"{reading.shared} bytes of shared memory, {SHARED_MEMORY[arch]} allowed": reading.shared
            > SHARED_MEMORY[arch],
            f"{reading.tensor_memory} columns of tensor memory": reading.tensor_memory > _COLUMNS,
        }
        broken |= {f"lacks {one}": not reading.has(one) for one in expect.wanted(arch)}
        broken |= {f"contains {one}": reading.has(one) for one in expect.unwanted(arch)}
        wrong += [f"{name}: {what}" for what, holds in broken.items() if holds]
    return wrong


def budgets(case: Case, found: dict[str, Reading]) -> list[str]:
    """Hot loops that take more instructions per element than the case allows."""
    wrong = []
    for name, reading in found.items():
        expect = case.kernels.get(name.partition("#")[0], Expect())
        if expect.elements is None:
            continue
        if not reading.loops:
            wrong.append(f"{name}: a budget, but no hot loop")
        spent = reading.per_element(expect.elements)
        most = expect.budget if isinstance(expect.budget, tuple) else (expect.budget,) * len(spent)
        if len(most) != len(spent):
            wrong.append(f"{name}: budgets of {len(most)} loops given, {len(spent)} hot loops found")
            continue
        for one, allowed in zip(spent, most, strict=True):
            if allowed is not None and one > allowed:
                wrong.append(f"{name}: {one:.2f} instructions per element, {allowed} allowed")
    return wrong


def expected(case: Case, found: dict[str, Reading]) -> dict[str, Any]:
    """What to record of a case on one architecture."""
    rows = {}
    for name, reading in found.items():
        expect = case.kernels.get(name.partition("#")[0], Expect())
        rows[name] = {
            "registers": reading.registers,
            "shared": reading.shared,
            "opcodes": reading.watched(),
            "per_element": [round(one, 2) for one in reading.per_element(expect.elements)],
        }
    return rows


def compare(case: Case, found: dict[str, Reading], recorded: dict[str, Any] | None) -> list[str]:
    """What is worse than recorded by more than the slack, or not recorded at all."""
    if recorded is None:
        return ["nothing recorded: run `python -m tests.aot.record`"]
    wrong = [f"{name}: recorded, not launched any more" for name in recorded if name not in found]
    for name, now in expected(case, found).items():
        then = recorded.get(name)
        if then is None:
            wrong.append(f"{name}: not recorded")
            continue
        for what in ("registers", "shared"):
            if now[what] > SLACK * then[what]:
                wrong.append(f"{name}: {now[what]} {what}, {then[what]} recorded")
        wrong += [f"{name}: {one} is gone" for one in then["opcodes"] if one not in now["opcodes"]]
        if len(now["per_element"]) != len(then["per_element"]):
            wrong.append(f"{name}: hot loops {now['per_element']}, {then['per_element']} recorded")
            continue
        for one, before in zip(now["per_element"], then["per_element"], strict=True):
            if one > SLACK * before:
                wrong.append(f"{name}: {one} instructions per element, {before} recorded")
    return wrong


def recorded(operation: str) -> dict[str, Any]:
    """What was recorded of an operation: {"triton": version, "cases": {case: {arch: {kernel: numbers}}}}."""
    path = FOLDER / f"{operation}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"triton": None, "cases": {}}


def pinned(record: dict[str, Any]) -> bool:
    """Whether the numbers hold for this triton: another one allots registers and instructions otherwise."""
    return record["triton"] in (None, triton.__version__)
