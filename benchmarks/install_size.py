"""How much each extra adds to an installation: MB of the files of the packages that it needs, theirs included.

    python benchmarks/install_size.py          # in an environment that has the wheel with all its extras

Files are those that installers recorded, compiled modules of the installer included. What an extra shares with another
counts for both; what the package itself needs counts for none. `docs/install.md` says these numbers, rounded.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vlm_eff.eval.record import Record
from vlm_eff.reference.machine import describe_device

RECORD = Path(__file__).parent / "results" / "install_size.json"
NAME = "vlm-eff"
# of an environment of its own, or for those who change this package
LEFT_OUT = {"dev", "docs", "lmms", "ray"}
# what a build of torch for CPUs does without
GPU = ("cuda", "nvidia", "triton")


def needed(name: str, extra: str = "") -> set[str]:
    """The installed packages that a package needs with an extra, itself included, by normalised name."""
    found: set[str] = set()
    asked, waiting = set(), [(canonicalize_name(name), extra)]
    while waiting:
        one = waiting.pop()
        if one in asked or _distribution(one[0]) is None:
            continue
        asked.add(one)
        found.add(one[0])
        for line in _distribution(one[0]).requires or ():
            needs = Requirement(line)
            if needs.marker is None or needs.marker.evaluate({"extra": one[1]}):
                waiting += [(canonicalize_name(needs.name), more) for more in ("", *needs.extras)]
    return found


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def size(names: set[str]) -> float:
    """Size of the files of packages, MB."""
    paths = [Path(str(path.locate())) for name in names for path in metadata.distribution(name).files or ()]
    return round(sum(path.stat().st_size for path in paths if path.is_file()) / 1e6, 1)


def main(record: Path = RECORD) -> None:
    """Measure this environment and write the record."""
    own = metadata.distribution(NAME)
    base = needed(NAME)
    extras = sorted(set(own.metadata.get_all("Provides-Extra") or ()) - LEFT_OUT)
    lacking = [
        f"{needs.name} of [{extra}]"
        for extra in extras
        for needs in map(Requirement, own.requires or ())
        if needs.marker and needs.marker.evaluate({"extra": extra}) and _distribution(needs.name) is None
    ]
    if lacking:
        raise typer.BadParameter(f"not installed: {', '.join(lacking)}; install the wheel with all its extras first")
    result = {
        "base": size(base),
        "for_gpus": size({name for name in base if name.startswith(GPU)}),
        "package": size({NAME}),
        "all": size(base.union(*(needed(NAME, extra) for extra in extras))),
        "extras": {extra: size(needed(NAME, extra) - base) for extra in extras},
    }
    made = Record(
        "install-size", "1", NAME, {"version": own.version, "extras": extras}, describe_device("cpu"), 1, result
    )
    made.write(record)
    typer.echo(f"wrote {record}")


if __name__ == "__main__":
    typer.run(main)
