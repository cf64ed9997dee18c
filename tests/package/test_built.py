"""What is in the wheel and in the sdist: all that runs, nothing else, and the one builds the other."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import vlm_eff
from tests.package.conftest import ROOT, build_wheel

PACKAGE = Path(vlm_eff.__file__).parent
# folders of people and of this machine have no business in a package
MACHINE = re.compile(rb"/(?:home|root|Users|tmp)/\w|" + re.escape(str(ROOT).encode()))


def contents(path: Path) -> dict[str, int]:
    """Checksum of each file of a wheel."""
    with zipfile.ZipFile(path) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(contents(wheel))
    here = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    here = {name for name in here if "__pycache__" not in name}
    info = f"vlm_eff-{vlm_eff.__version__}.dist-info"
    about = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert names == here | {f"{info}/{name}" for name in about}
    assert {"vlm_eff/py.typed", "vlm_eff/reference/small_vlm/model.safetensors"} <= names


def test_the_wheel_knows_no_machine(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        read = {name: archive.read(name) for name in archive.namelist() if not name.endswith(".safetensors")}
    found = {name: match[0] for name, data in read.items() if (match := MACHINE.search(data))}
    assert not found
    assert MACHINE.search(b'"/home/somebody/models"'), "the pattern finds what it looks for"


def test_the_metadata_is_what_the_project_says(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"vlm_eff-{vlm_eff.__version__}.dist-info/METADATA").decode()
    about = HeaderParser().parsestr(text)
    assert (about["Name"], about["Version"]) == ("vlm-eff", vlm_eff.__version__)
    assert about["License-Expression"] == "Apache-2.0" and about["Requires-Python"] == ">=3.11"
    assert set(about.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    assert "Typing :: Typed" in about.get_all("Classifier", [])


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.tar.gz")
    return made


def test_the_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    assert contents(build_wheel(sdist, tmp_path)) == contents(wheel)


def test_the_sdist_holds_what_the_tests_read(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("tests", "examples", "benchmarks", "docs"):
        here = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert {name for name in here if "__pycache__" not in name} <= names
    assert {"README.md", "ARCHITECTURE.md", "LICENSE", "Makefile", "pyproject.toml"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith((".venv", "out/", ".git/"))]


def test_the_sdist_names_only_what_is_there() -> None:
    built = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    for pattern in built["targets"]["sdist"]["include"]:
        assert list(ROOT.glob(pattern.lstrip("/"))), pattern
