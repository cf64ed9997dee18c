"""`vlm-eff doctor`: versions, extras, decoders, what others offer, and what a model can carry."""

from __future__ import annotations

import json
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from typer.testing import CliRunner

import vlm_eff
from vlm_eff.cli import app
from vlm_eff.core import registry
from vlm_eff.eval import entry_points, fitting, installation
from vlm_eff.eval.installation import TESTED, extras_of, look, problem_of
from vlm_eff.models.family import Family
from vlm_eff.video.reader import BACKENDS


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        ("2.14.3", None),
        ("2.15.1+cu130", None),
        ("2.16.0", None),
        ("2.17.0", "is newer than the newest tested release (2.16)"),
        ("2.13.0", "is older than the oldest tested release (2.14)"),
        ("2.12.9", "does not meet >=2.13"),
        (None, None),
    ],
)
def test_a_version_is_held_against_what_is_needed_and_tested(version: str | None, problem: str | None) -> None:
    assert problem_of(version, ">=2.13", ("2.14", "2.16")) == problem


def test_what_was_tested_is_not_below_what_is_needed() -> None:
    needed = {one.name: one for one in map(Requirement, metadata.requires("transformers") or ())}
    assert needed, "the form of a requirement is the one of packaging"
    for first, last in TESTED.values():
        assert Version(first) <= Version(last)
    # every adapter says what it was tested with, and so does the doctor
    assert TESTED["transformers"][1] == Family.__dataclass_fields__["transformers"].default


def test_an_extra_says_what_it_lacks() -> None:
    lines = (
        "numpy",
        "numpy>=1; extra == 'first'",
        "no-such-package>=2; extra == 'first'",
        "numpy>=999; extra == 'second'",
        "no-such-package; platform_system == 'Atari' and extra == 'third'",
        "no-such-package; extra == 'dev'",
    )
    extras = {extra.name: extra for extra in extras_of(map(Requirement, lines))}
    assert {name: extra.missing for name, extra in extras.items()} == {
        "first": ("no-such-package",),
        "second": ("numpy",),
        "third": (),
    }
    assert extras["first"].command == 'pip install "vlm-eff[first]"'
    assert extras["first"].needs == ("numpy>=1", "no-such-package>=2")


def test_a_copy_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "NAME", "no-such-package")
    found = look()
    assert not found.extras and "imported from a folder" in found.remarks[0]


def test_every_decoder_is_named() -> None:
    assert {decoder.name for decoder in look().decoders} == set(BACKENDS) - {"auto"}


def test_old_packages_are_remarks_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TESTED, "torch", ("99.1", "99.2"))
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "torch" in result.stderr and "is older than the oldest tested release (99.1)" in result.stderr
    assert "99.1 to 99.2" in result.stdout


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four entry points of others: one that breaks, and one whose name is taken, of methods and of tasks."""
    points = [
        metadata.EntryPoint("theirs", "no_such_package:method", "vlm_eff.plugins"),
        metadata.EntryPoint("fastv", "vlm_eff.tokens:pyramiddrop", "vlm_eff.plugins"),
        metadata.EntryPoint("their_task", "no_such_package:task", "vlm_eff.tasks"),
        metadata.EntryPoint("gqa", "vlm_eff.eval.tasks.gqa:read_gqa", "vlm_eff.tasks"),
    ]
    monkeypatch.setattr(metadata, "entry_points", lambda group: [one for one in points if one.group == group])
    monkeypatch.setattr(registry, "BROKEN_ENTRY_POINTS", {})
    monkeypatch.setattr("vlm_eff.eval.tasks.source.BROKEN_TASKS", {})


@pytest.mark.usefixtures("offered")
def test_what_others_offer_is_imported_and_named() -> None:
    found = {(one.group, one.name): one.problem for one in entry_points.offers()}
    assert "no_such_package" in (found["vlm_eff.plugins", "theirs"] or "")
    assert "no_such_package" in (found["vlm_eff.tasks", "their_task"] or "")
    for group, name, kind in (("vlm_eff.plugins", "fastv", "method"), ("vlm_eff.tasks", "gqa", "task")):
        assert found[group, name] == f"another {kind} has the name {name!r}, and is the one that is used"


@pytest.mark.usefixtures("offered")
def test_what_cannot_be_used_is_said() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "'theirs'" in result.stderr and "no_such_package" in result.stderr
    assert "vlm_eff.plugins theirs of an unnamed package: cannot be used" in result.stdout


def test_which_methods_go_on_the_bundled_model() -> None:
    result = CliRunner().invoke(app, ["doctor", "--model", "bundled", "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["device"]["device"] == "cpu" and "cpu" in found["device"]["why_no_kernels"]
    assert found["model"]["family"] == "llava" and "8 layers" in found["model"]["about"]
    rows = {row["method"]: row for row in found["model"]["methods"]}
    assert set(rows) == {name for name, method in vlm_eff.methods().items() if method.room != "diffusion"}
    assert rows["fastv"]["why_not"] is None and rows["zipvl"]["why_not"] is None
    assert "without weights" in rows["victor"]["why_not"]


def test_a_method_that_fails_is_named_and_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def attach(model: object, plugin: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(vlm_eff, "attach", attach, raising=False)
    assert fitting.why_not(object(), object()) == "RuntimeError: a mistake"


@pytest.mark.parametrize("option", [["--model", "/no/such/folder"], ["--device", "abacus"]])
def test_what_is_not_there_is_a_failure(option: list[str]) -> None:
    result = CliRunner().invoke(app, ["doctor", *option])
    assert result.exit_code == 1
    assert option[1] in result.stderr
