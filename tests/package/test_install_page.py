"""What docs/install.md says of sizes, extras and versions is what was built, declared and measured."""

from __future__ import annotations

import json
import re
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.package.conftest import ROOT
from vlm_eff.eval.installation import TESTED

PAGE = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
SIZES = json.loads((ROOT / "benchmarks" / "results" / "install_size.json").read_text(encoding="utf-8"))["result"]
# how distributions are called on the page
NAMES = {"PyAV": "av"}


def table(heading: str) -> dict[str, list[str]]:
    """Rows of the first table below a heading, by their first cell without quotes."""
    lines = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {name.strip("`"): row[1:] for row in rows[2:] for name in row[0].split(", ")}


def test_the_size_of_the_wheel(wheel: Path) -> None:
    (found,) = re.findall(r"The wheel is (\d+) MB and (\d+) MB unpacked, of which (\d+) MB are weights", PAGE)
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    bytes_of = (wheel.stat().st_size, sum(sizes.values()), weights)
    assert [round(size / 1e6) for size in bytes_of] == [int(said) for said in found]


def test_every_extra_is_in_the_table() -> None:
    assert set(table("Extras")) == set(EXTRAS) | {"none"}


@pytest.mark.parametrize("extra", sorted({"none", *SIZES["extras"]}))
def test_the_size_of_an_extra_was_measured(extra: str) -> None:
    said = float(table("Extras")[extra][-1].replace(",", ""))
    measured = SIZES["base"] if extra == "none" else SIZES["extras"][extra]
    assert said == pytest.approx(measured, rel=0.05, abs=0.5)


def test_versions_are_those_declared_and_tested() -> None:
    rows = table("Versions")
    lines = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    declared = {one.name: one for one in map(Requirement, lines)}
    assert {NAMES.get(name, name) for name in rows} == {"Python", *TESTED}
    for name, (needed, tested) in rows.items():
        if name == "Python":
            assert PROJECT["requires-python"] == f">={needed.removesuffix(' or newer')}"
            continue
        package = NAMES.get(name, name)
        assert str(declared[package].specifier) == f">={needed.removesuffix(' or newer')}"
        assert tested == " to ".join(dict.fromkeys(TESTED[package]))
