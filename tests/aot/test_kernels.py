"""Every kernel of every operation, compiled for three architectures without a GPU: no stack, no spills, no surprises.

Every case meets one architecture here, and all with `pytest tests/aot --every-architecture`: run that after a change of
a kernel or of its cases. What may never be holds with any triton; numbers are those of the version that recorded them.
Rewrite them with `python -m tests.aot.record` and read the difference before committing it.
"""

from __future__ import annotations

import functools
from collections import Counter

import pytest

from tests.aot.case import Case, cases, operations
from tests.aot.reading import Reading, readings
from tests.aot.stub import compiled
from tests.aot.verdict import budgets, compare, limits, pinned, recorded

ALL = [
    (operation, name, arch)
    for operation in operations()
    for name in cases(operation)
    for arch in cases(operation)[name].archs
]


def spread() -> set[tuple[str, str, int]]:
    """Each case on the architecture that its operation has met least; what an operation still lacks on its first."""
    made = set()
    for operation in operations():
        met: Counter[int] = Counter()
        for name, case in cases(operation).items():
            arch = min(case.archs, key=lambda one: met[one])
            met[arch] += 1
            made.add((operation, name, arch))
        missing = [one for one in ALL if one[0] == operation and one[2] not in met]
        made |= {next(one for one in missing if one[2] == arch) for arch in {one[2] for one in missing}}
    return made


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "arch" in metafunc.fixturenames:
        wanted = set(ALL) if metafunc.config.getoption("--every-architecture", default=False) else spread()
        chosen = [one for one in ALL if one in wanted]
        ids = [f"{operation}-{name}-sm_{arch}" for operation, name, arch in chosen]
        metafunc.parametrize(("operation", "name", "arch"), chosen, ids=ids)


@functools.cache
def built(operation: str, name: str, arch: int) -> tuple[Case, dict[str, Reading]]:
    case = cases(operation)[name]
    return case, readings(compiled(case.call, arch))


def test_every_case_and_every_architecture_of_an_operation_is_met() -> None:
    assert {one[:2] for one in spread()} == {one[:2] for one in ALL}
    assert {(one[0], one[2]) for one in spread()} == {(one[0], one[2]) for one in ALL}


def test_compiles_as_expected(operation: str, name: str, arch: int) -> None:
    case, found = built(operation, name, arch)
    wrong = limits(case, arch, found)
    record = recorded(operation)
    if pinned(record):
        wrong += budgets(case, found)
        wrong += compare(case, found, record["cases"].get(name, {}).get(str(arch)))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("operation", operations())
def test_nothing_is_expected_that_is_not_there(operation: str) -> None:
    known = {(name, str(arch)) for name, case in cases(operation).items() for arch in case.archs}
    noted = {(name, arch) for name, rows in recorded(operation)["cases"].items() for arch in rows}
    assert noted <= known, "run `python -m tests.aot.record`"
