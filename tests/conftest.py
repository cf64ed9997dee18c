"""One thread for all tests: tiny models run faster so, and sums come out the same on every machine."""

import gc
import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_finish() -> None:
    """Libraries and collected tests live to the end: the garbage collector need not look at them again and again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    # what is frozen at exit is reported as leaked
    gc.unfreeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        terminalreporter.write_line("tests/kernels ran apart: they need TRITON_INTERPRET=1 (`make test` does both)")
