"""What is installed beside this package, told by the metadata of packages alone: nothing heavy is imported."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from ctypes.util import find_library
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

import vlm_eff

NAME = "vlm-eff"
# the first and the last release, major and minor, that the whole test suite ran with
TESTED: dict[str, tuple[str, str]] = {
    "torch": ("2.15", "2.15"),
    "transformers": ("5.23", "5.23"),
    "diffusers": ("0.42", "0.42"),
    "timm": ("1.0", "1.0"),
    "open-clip-torch": ("3.3", "3.3"),
    "av": ("18.1", "18.1"),
}
# beside those: what decides results, or whether a fast path runs
ALSO_SHOWN = ("numpy", "pillow", "safetensors", "tokenizers", "triton")
# readers of videos by module, in the order of preference, and the packages that bring it
DECODERS = {
    "av": ("av",),
    "decord": ("eva-decord", "decord", "decord2"),
    "torchcodec": ("torchcodec",),
    "pillow": ("pillow",),
}
# extras for those who change this package
_INSIDE = frozenset({"dev", "docs"})


@dataclass(frozen=True)
class Package:
    """An installed package, what of it is needed and tested, and what is wrong with it, in words, or None."""

    name: str
    version: str | None
    needed: str
    tested: str
    problem: str | None


@dataclass(frozen=True)
class Extra:
    """A set of packages that a part of the library needs; `command` installs those that are missing."""

    name: str
    needs: tuple[str, ...]
    missing: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class Decoder:
    """A reader of videos, by the name that `read_video` takes as backend; `note` is what else it needs."""

    name: str
    package: str | None
    version: str | None
    note: str = ""


@dataclass(frozen=True)
class Installation:
    """What `look` found. `remarks` are sentences on what should be put right; none of them stops anything."""

    version: str
    python: str
    platform: str
    packages: tuple[Package, ...]
    extras: tuple[Extra, ...]
    decoders: tuple[Decoder, ...]
    remarks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self)


def look() -> Installation:
    """Look at the environment of this process."""
    wanted, remarks = _own_requirements()
    needed = {one.name: str(one.specifier) for one in wanted}
    packages = tuple(check_package(name, needed.get(name, "")) for name in (*TESTED, *ALSO_SHOWN))
    remarks += tuple(f"{one.name} {one.version} {one.problem}" for one in packages if one.version and one.problem)
    missing = (one.name for one in _without_extra(wanted) if version_of(one.name) is None)
    remarks += tuple(f"{name} is needed and not installed: pip install {name}" for name in missing)
    return Installation(
        vlm_eff.__version__,
        platform.python_version(),
        f"{platform.system()} {platform.machine()}",
        packages,
        tuple(extras_of(wanted)),
        tuple(_decoders()),
        remarks,
    )


def check_package(name: str, needed: str = "") -> Package:
    """Hold the installed version of a package against what is needed and what was tested."""
    version, tested = version_of(name), TESTED.get(name)
    shown = "" if tested is None else tested[0] if tested[0] == tested[1] else f"{tested[0]} to {tested[1]}"
    return Package(name, version, needed, shown, problem_of(version, needed, tested))


def problem_of(version: str | None, needed: str, tested: tuple[str, str] | None) -> str | None:
    """What is wrong with a version, in words: below what is needed, or outside what was tested; else None."""
    if version is None:
        return None
    if needed and not Requirement(f"it{needed}").specifier.contains(version, prereleases=True):
        return f"does not meet {needed}"
    if tested is None:
        return None
    first, last = (Version(end).release for end in tested)
    release = Version(version).release[:2]
    if release < first:
        return f"is older than the oldest tested release ({tested[0]})"
    if release > last:
        return f"is newer than the newest tested release ({tested[1]})"
    return None


def extras_of(requirements: Iterable[Requirement]) -> Iterator[Extra]:
    """The extras that these requirements of a package name, by name, and what each lacks in this environment."""
    requirements = list(requirements)
    for name in sorted({extra for one in requirements for extra in _extras_in(one)} - _INSIDE):
        needs = [
            one
            for one in requirements
            if name in _extras_in(one) and one.marker and one.marker.evaluate({"extra": name})
        ]
        missing = tuple(one.name for one in needs if not _met(one))
        yield Extra(
            name, tuple(f"{one.name}{one.specifier}" for one in needs), missing, f'pip install "{NAME}[{name}]"'
        )


def version_of(name: str) -> str | None:
    """The version of an installed package, None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _own_requirements() -> tuple[list[Requirement], tuple[str, ...]]:
    try:
        own = metadata.distribution(NAME)
    except metadata.PackageNotFoundError:
        return [], (f"{NAME} is imported from a folder and not installed, so its extras are not known: pip install .",)
    remark = f"the installed metadata says {NAME} {own.version}, the code {vlm_eff.__version__}: install it again"
    return [Requirement(line) for line in own.requires or ()], () if own.version == vlm_eff.__version__ else (remark,)


def _extras_in(requirement: Requirement) -> frozenset[str]:
    """The extras that a requirement belongs to."""
    text = str(requirement.marker or "")
    parts = text.replace("'", '"').split('extra == "')[1:]
    return frozenset(part.partition('"')[0] for part in parts)


def _without_extra(requirements: Iterable[Requirement]) -> Iterator[Requirement]:
    return (one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""}))


def _met(requirement: Requirement) -> bool:
    version = version_of(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _decoders() -> Iterator[Decoder]:
    for module, packages in DECODERS.items():
        found = next((name for name in packages if version_of(name)), None)
        yield Decoder(module, found, version_of(found) if found else None, _note(module) if found else "")


def _note(module: str) -> str:
    if module == "torchcodec":
        library = find_library("avcodec")
        return f"with {library} of the system" if library else "finds no FFmpeg of the system: apt install ffmpeg"
    return {"decord": "in a process of its own", "pillow": "GIF, WebP and folders of pictures"}.get(module, "")
