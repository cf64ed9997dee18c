"""The guard catches what it is there for, each kind of breakage shown once; and what it reads is right."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import pytest
import torch
import triton

from tests.aot import sass, stub
from tests.aot.case import Case, Expect
from tests.aot.cases.example import BM, BN, CASES, launch
from tests.aot.reading import Reading, readings
from tests.aot.stub import compiled, target
from tests.aot.verdict import budgets, compare, expected, limits
from vlm_eff.kernels import tiles

NAME = "scores_kernel"


@functools.cache
def good(arch: int = 90) -> dict[str, Reading]:
    return readings(compiled(launch, arch))


def spilling() -> object:
    return launch(rows=64, block=128, warps=1, stages=1)


def too_much_shared() -> object:
    return launch(block=128, stages=8)


def too_few_rows() -> object:
    return launch(rows=16, warps=4)


@pytest.mark.parametrize(
    ("call", "arch", "said"),
    [
        (spilling, 80, ("bytes of stack", "spilled registers")),
        (too_much_shared, 80, ("bytes of shared memory, 166912 allowed",)),
        (too_few_rows, 90, ("lacks HGMMA",)),
        (lambda: None, 90, ("nothing was launched", "never launched")),
    ],
    ids=["spills", "shared", "opcode", "nothing"],
)
def test_a_broken_kernel_is_caught(call: Callable[[], object], arch: int, said: tuple[str, ...]) -> None:
    case = dataclasses.replace(CASES["d128"], call=call)
    wrong = "\n".join(limits(case, arch, readings(compiled(call, arch))))
    assert all(one in wrong for one in said), wrong


def test_a_forbidden_opcode_is_caught() -> None:
    case = Case(launch, {NAME: Expect(forbids=("MUFU.EX2",))})
    assert limits(case, 90, good()) == [f"{NAME}: contains MUFU.EX2"]
    assert limits(CASES["d128"], 90, good()) == []


@pytest.mark.parametrize("budget", [5.0, (5.0,)])
def test_a_loop_that_is_too_long_is_caught(budget: float | tuple[float, ...]) -> None:
    tight = Case(launch, {NAME: Expect(elements=BM * BN, budget=budget)})
    assert "instructions per element, 5.0 allowed" in budgets(tight, good())[0]
    assert budgets(CASES["d128"], good()) == []


def test_a_budget_without_a_loop_is_caught() -> None:
    empty = {NAME: dataclasses.replace(good()[NAME], loops=())}
    assert budgets(CASES["d128"], empty) == [f"{NAME}: a budget, but no hot loop"]


@pytest.mark.parametrize(
    ("worse", "said"),
    [
        ({"registers": 128}, "128 registers"),
        ({"shared": 200_000}, "200000 shared"),
        ({"loops": (400,)}, "12.5 instructions per element"),
        ({"loops": (216, 216)}, "hot loops"),
        ({"counts": {"LDG.E.128": 1}}, "HGMMA is gone"),
    ],
)
def test_getting_worse_than_recorded_is_caught(worse: dict[str, object], said: str) -> None:
    case, before = CASES["d128"], expected(CASES["d128"], good())
    assert compare(case, good(), before) == []
    now = {NAME: dataclasses.replace(good()[NAME], **worse)}
    assert any(said in one for one in compare(case, now, before))


def test_what_is_not_recorded_is_caught() -> None:
    case, before = CASES["d128"], expected(CASES["d128"], good())
    assert "nothing recorded" in compare(case, good(), None)[0]
    assert compare(case, good(), {}) == [f"{NAME}: not recorded"]
    assert compare(case, good(), before | {"gone": before[NAME]}) == ["gone: recorded, not launched any more"]


def test_another_specialisation_is_another_kernel() -> None:
    def twice() -> None:
        launch(1000)
        launch(1000)
        launch(1024)

    # 1000 is divisible by 8, 1024 by 16: triton compiles these apart, and equal launches once
    assert list(readings(compiled(twice, 90))) == [NAME, f"{NAME}#2"]


def test_nothing_stays_behind() -> None:
    run, before = triton.JITFunction.run, tiles.architecture
    with target(80):
        assert tiles.architecture(torch.device("cpu")) == 80
    assert triton.JITFunction.run is run and tiles.architecture is before
    assert not isinstance(triton.runtime.driver._active, stub.StubDriver)


def test_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        compiled(launch, 90)


def line(text: str) -> str:
    return f"        /*0000*/  {text} ;"


def code(*lines: str) -> str:
    return "\n".join(one if one.endswith(":") else line(one) for one in lines)


def test_a_slow_path_belongs_to_its_loop_and_a_wait_is_none() -> None:
    body = ["HGMMA.64x64x16 R24, R8"] * 20
    text = code(
        "MOV R1, R2",
        ".L_x_0:",
        *body,
        "@!P0 BRA `(.L_x_2)",
        ".L_x_1:",
        "@P1 BRA `(.L_x_0)",
        "EXIT",
        ".L_x_2:",
        "SYNCS.PHASECHK P2, [UR10]",
        "@!P2 BRA `(.L_x_2)",
        "BRA `(.L_x_1)",
        ".L_x_3:",
        "BRA `(.L_x_3)",
    )
    hot = sass.hot_loops(text)
    # twenty products, the two branches, and the three instructions of the wait behind the exit
    assert [len(loop.opcodes) for loop in hot] == [25]
    assert [len(loop.opcodes) for loop in sass.loops(text)] == [25, 2]


def test_two_loops_inside_one_are_two_and_a_uniform_branch_falls_through() -> None:
    inner = ["LDG.E.128 R4, R6"] * 15
    text = code(
        ".L_x_0:",
        "MOV R1, R2",
        ".L_x_1:",
        *inner,
        "BRA.U UP0, `(.L_x_1)",
        ".L_x_2:",
        *inner,
        "NOP",
        "MUFU.EX2 R1, R1",
        "BRA.DIV ~URZ, `(.L_x_2)",
        "@P1 BRA `(.L_x_0)",
        "EXIT",
    )
    assert [len(loop.opcodes) for loop in sass.hot_loops(text)] == [16, 17]


@pytest.mark.parametrize(
    ("opcode", "pattern", "fits"),
    [
        ("LDGSTS.E.BYPASS.LTC128B.128", "LDGSTS.128", True),
        ("LDGSTS.E.BYPASS.64", "LDGSTS.128", False),
        ("LDG.E.128", "LDGSTS.128", False),
        ("HMMA.16816.F32.BF16", "HGMMA|HMMA", True),
        ("I2FP.F32.S32", "I2F", False),
    ],
)
def test_patterns(opcode: str, pattern: str, fits: bool) -> None:
    assert sass.matches(opcode, pattern) is fits
