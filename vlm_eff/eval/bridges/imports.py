"""Per-sample files of lmms-eval and VLMEvalKit as runs of ours, so that `vlm-eff compare` pairs them.

Scores are those of the harness, except that an empty answer is wrong, as everywhere here. What a harness does not tell
is None, an empty string or 0. Both are said in `task["imported"]`, which comparisons do not look at; whatever decides
answers stands in the settings, which have to be the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import vlm_eff
from vlm_eff.core.errors import InputError, explain
from vlm_eff.core.files import make_folder, write_file
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.runs.folder import SAMPLES, Header, Run, Sample, read_run, write_header
from vlm_eff.eval.tasks.item import Item, Task

# what `eval` writes into the settings of a run of its own
_OWN_SETTINGS = ("batch_size", "limit", "seed", "video_as", "baseline", "dtype", "attention", "threads")


@dataclass(frozen=True)
class Answered:
    """One answer as a harness wrote it.

    value:  its score there, from 0 to 1; error: why the harness got no answer, else None
    parsed: what the harness read from the answer, where it says so; media: names of what was shown, where it does
    """

    id: str
    prompt: str
    target: str
    answer: str
    value: float
    parsed: str | None = None
    new_tokens: int | None = None
    media: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Source:
    """What a harness says of a run.

    tool, version: of the harness; files: names of what was read; date: ISO
    model, task, task_version, metric, max_new_tokens: as the harness calls them
    settings: what it tells of how it asked; plugins: None where a label alone says that there were some
    notes: what else it tells, such as means of what our bridge measured
    """

    tool: str
    version: str
    files: tuple[str, ...]
    date: str
    model: str
    task: str
    metric: str
    task_version: str = ""
    max_new_tokens: int | None = None
    device: str = ""
    plugins: tuple[Plugin, ...] | None = ()
    specs: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


def import_runs(
    files: Sequence[Path], output: Path, read: Callable[[Path], tuple[Source, list[Answered]]]
) -> list[Run]:
    """Read files with `read` and write a run each: into `output`, or, of several, into a folder in it by task.

    Raises:
        InputError: no file, one that is not of the harness, or a folder that holds something already.
    """
    if not files:
        raise InputError(explain("no file", "per-sample files of the harness", "Name one or more"))
    # all are read before the first is written
    found = [read(path) for path in files]
    names = [_folder_name(source.task) for source, _ in found]
    if len(set(names)) < len(names):
        raise InputError(explain(f"tasks {', '.join(names)}", "files of different tasks", "Import runs one by one"))
    places = [output] if len(found) == 1 else [output / name for name in names]
    for place in places:
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise InputError(explain(f"{place} holds something", "a new or empty folder", "Choose another folder"))
    return [write_run(place, source, lines) for place, (source, lines) in zip(places, found, strict=True)]


def write_run(folder: Path, source: Source, lines: Sequence[Answered]) -> Run:
    """Write one run and return it as it reads."""
    header, samples = header_of(source, lines), [_sample(line) for line in lines]
    make_folder(folder)
    write_file(folder / SAMPLES, "".join(json.dumps(asdict(sample)) + "\n" for sample in samples))
    # without it the folder is no run: written last, the run is there in full or not at all
    write_header(folder, header)
    return read_run(folder)


def header_of(source: Source, lines: Sequence[Answered]) -> Header:
    """What `run.json` says of an imported run."""
    items = tuple(Item(line.id, line.prompt, (), {"target": line.target}) for line in lines)
    metric, version = f"{source.tool}:{source.metric}", source.task_version or "not told"
    task = Task(f"{source.tool}:{source.task}", version, metric, items, source.max_new_tokens or 0)
    told = {name: source.settings.get(name) for name in _OWN_SETTINGS}
    not_told = sorted(name for name, value in told.items() if value is None and name != "baseline")
    if not any(line.new_tokens for line in lines):
        not_told.append("new_tokens")
    return Header(
        task={
            "name": task.name,
            "version": version,
            "metric": metric,
            "max_new_tokens": source.max_new_tokens,
            "sampling": None,
            "items": len(items),
            "digest": task.digest,
            "imported": {
                "files": list(source.files),
                "by": f"vlm_eff {vlm_eff.__version__}",
                "not_told": not_told,
                "empty_scored_wrong": sum(bool(line.value) for line in lines if not line.answer.strip()),
                **source.notes,
            },
        },
        model=source.model,
        plugins=_plugins(source),
        specs=list(source.specs),
        settings={
            **told,
            **{name: value for name, value in source.settings.items() if name not in told},
            "imported_from": source.tool,
        },
        device=source.device or "not told",
        packages={source.tool: source.version},
        date=source.date,
    )


def _plugins(source: Source) -> list[dict[str, Any]]:
    if source.plugins is None:
        # without any entry the run would pass for the bare model
        return [{"method": label} for label in source.specs]
    return [plugin.to_dict() for plugin in source.plugins]


def labelled(
    label: str | None, plugins: tuple[Plugin, ...], specs: tuple[str, ...]
) -> tuple[tuple[Plugin, ...] | None, tuple[str, ...]]:
    """Plugins and how they are named, where a label may stand in for either."""
    if label is None:
        return plugins, specs
    return plugins or None, (label,)


def check_value(value: Any, metric: str, where: str) -> float:
    """A score of a harness as a number from 0 to 1; `InputError` where it is none."""
    made = float(value) if isinstance(value, bool | int | float) else -1.0
    if not 0 <= made <= 1:
        raise InputError(
            explain(f"{metric}={value!r} in {where}", "a number from 0 to 1, or true and false", "Name another metric")
        )
    return made


def _sample(line: Answered) -> Sample:
    empty = not line.answer.strip()
    status = "error" if line.error else "empty" if empty else "ok"
    return Sample(
        id=line.id,
        prompt=line.prompt,
        media=[{"file": name} for name in line.media],
        gold={"target": line.target},
        answer=line.answer,
        score=line.value if status == "ok" else 0.0,
        parsed=line.parsed if status == "ok" else None,
        status=status,
        new_tokens=line.new_tokens or 0,
        # questions about one picture are not independent
        cluster=" ".join(line.media),
        error=line.error,
    )


def _folder_name(task: str) -> str:
    return re.sub(r"[^\w.-]+", "_", task)
