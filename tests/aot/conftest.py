"""Kernels are compiled here, so triton has to be there and must not have been replaced by its interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vlm_eff.kernels.triton_here import installed, interpreting

# without these nothing here can be imported: `pytest tests/aot` then says that it ran no tests
if interpreting() or not installed():
    collect_ignore_glob = ["test_*.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-architecture", action="store_true", help="compile every case for every architecture")


@pytest.fixture(scope="session", autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compile everything anew, and equal kernels once."""
    from tests.aot.stub import cache

    with cache(tmp_path_factory.mktemp("triton")):
        yield
