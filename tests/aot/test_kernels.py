"""Every kernel of every operation, compiled for three architectures without a GPU: no stack, no spills, no surprises.

The first test holds with any triton; the numbers of the second are those of the version that recorded them.
Rewrite them with `python -m tests.aot.record` and read the difference before committing it.
"""

from __future__ import annotations

import functools

import pytest

from tests.aot.case import Case, cases, operations
from tests.aot.reading import Reading, readings
from tests.aot.stub import compiled
from tests.aot.verdict import budgets, compare, limits, pinned, recorded

ALL = [
    pytest.param(operation, name, arch, id=f"{operation}-{name}-sm_{arch}")
    for operation in operations()
    for name, case in cases(operation).items()
    for arch in case.archs
]


@functools.cache
def built(operation: str, name: str, arch: int) -> tuple[Case, dict[str, Reading]]:
    case = cases(operation)[name]
    return case, readings(compiled(case.call, arch))


@pytest.mark.parametrize(("operation", "name", "arch"), ALL)
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
