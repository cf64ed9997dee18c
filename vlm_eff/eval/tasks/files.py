"""Where a benchmark's files lie: the data file of a folder, and the pictures that it names.

No pickle is opened, and no name in a data file leads out of the folder that the file belongs to.
"""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

from vlm_eff.core.errors import InputError, explain

_PICKLES = (".p", ".pkl", ".pickle")


def find_file(folder: Path, *patterns: str) -> Path:
    """The data file in `folder`: the first pattern that is there decides.

    Raises:
        InputError: no folder, no such file, or several that fit one pattern.
    """
    return find_files(folder, *patterns, most=1)[0]


def find_files(folder: Path, *patterns: str, most: int | None = None) -> list[Path]:
    """As `find_file`, for data in several files of one pattern, in the order of their names."""
    if not folder.is_dir():
        got = f"{folder} is {'a file' if folder.exists() else 'not there'}"
        raise InputError(explain(got, "the folder that holds the benchmark's files", "Check the path"))
    for pattern in patterns:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if most is not None and len(found) > most:
            raise InputError(
                explain(
                    f"{folder} holds {', '.join(path.name for path in found)}",
                    f"one file that fits {pattern}",
                    "Keep the one that is meant in this folder",
                )
            )
        if found:
            return found
    pickled = [path.name for path in sorted(folder.iterdir()) if path.suffix in _PICKLES]
    got = f"{folder} holds none of the files this needs" + (f", only the pickle {pickled[0]}" if pickled else "")
    do = "Convert it in the environment it came from: a pickle runs code and is never opened here" if pickled else ""
    raise InputError(explain(got, ", ".join(patterns), do or "Check the path and the split"))


def inside(folder: Path, name: str) -> Path:
    """The file of that name under `folder`; whether it exists is found when it is opened.

    Raises:
        InputError: the name leads out of the folder.
    """
    # a backslash is a separator where a data set was written, or may be one where it is read
    parts = PureWindowsPath(name)
    if not name or parts.drive or parts.root or ".." in parts.parts or "\0" in name:
        accepted = f"a relative name of a file under {folder.name}"
        raise InputError(explain(f"the data file names {name!r}", accepted, "Do not use this data file as it is"))
    return folder.joinpath(*parts.parts)


def media_folder(folder: Path, *names: str) -> Path:
    """The first of the folders `names` under `folder` that is there, else `folder` itself."""
    return next((folder / name for name in names if (folder / name).is_dir()), folder)
