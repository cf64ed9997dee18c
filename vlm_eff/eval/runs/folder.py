"""A run on disk: `run.json` says what was asked and how, `samples.jsonl` holds one line an item, in any order.

Several processes write one file each, `samples-RANK.jsonl`; read together they are the run. A line is written when its
item is finished and never changed; a last line that was cut by the end of the process is dropped when the run is taken
up again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from vlm_eff.core.errors import InputError, explain
from vlm_eff.core.files import make_folder, write_file

FORMAT = 1
HEADER, SAMPLES, PARTS = "run.json", "samples.jsonl", "samples*.jsonl"


@dataclass(frozen=True)
class Sample:
    """One item, asked and scored.

    id, cluster, groups, prompt, gold: of the item
    media:   what was shown: {"picture": digest of the pixels, "size": [w, h]}, or {"video": file name, "digest",
             "convention", "indices", "partial"}
    answer:  text of the model; new_tokens: its length
    score, parsed, status: see `metrics.Score`; error: why an item could not be asked, else None
    costs:   by name: visual_tokens, n_eq, n_eq_asked, flops_ratio, kv_bytes_ratio (with the plugin / bare, prompt),
             kv_bytes, visual_per_layer; what does not apply is left out
    """

    id: str
    prompt: str
    media: list[dict[str, Any]]
    gold: dict[str, Any]
    answer: str
    score: float
    parsed: str | None
    status: str
    new_tokens: int
    cluster: str = ""
    groups: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    costs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Header:
    """What was asked, of what, and how.

    task:     name, version, metric, max_new_tokens, sampling, items (how many), digest
    plugins:  each as its dict; specs: as they were written; empty for the bare model
    settings: batch_size, seed, limit, dtype, attention, video_as, baseline; whatever else decides answers
    """

    task: dict[str, Any]
    model: str
    plugins: list[dict[str, Any]]
    specs: list[str]
    settings: dict[str, Any]
    device: str
    packages: dict[str, str]
    date: str
    format: int = FORMAT

    @property
    def label(self) -> str:
        """How tables name the run."""
        baseline = self.settings.get("baseline")
        return " + ".join(self.specs) or (str(baseline) if baseline else "bare")


@dataclass(frozen=True)
class Run:
    """A run that was read: its samples by item id."""

    folder: Path
    header: Header
    samples: dict[str, Sample]

    @property
    def finished(self) -> bool:
        """Every item has its line."""
        items: int = self.header.task["items"]
        return len(self.samples) == items


def read_run(folder: Path) -> Run:
    """Read a run, finished or not.

    Raises:
        InputError: no run in the folder, another format, a line in the middle that is damaged, or an item twice.
    """
    header, samples = read_header(folder), {}
    for path in sorted(folder.glob(PARTS)):
        for sample in read_samples(path):
            if sample.id in samples:
                raise _twice(sample, path)
            samples[sample.id] = sample
    return Run(folder, header, samples)


def read_header(folder: Path) -> Header:
    """Read `run.json`; see `read_run`."""
    path = folder / HEADER
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values.get("format")
        if found != FORMAT:
            raise ValueError(f"format {found!r}, not {FORMAT}")
        return Header(**values)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            explain(f"{folder} holds no run ({error})", "a folder written by vlm-eff eval", "Check the path")
        ) from None


def read_samples(path: Path) -> list[Sample]:
    """Read the lines of a run; a cut last line is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    # what stands behind the last line end was cut while it was written
    made: dict[str, Sample] = {}
    for number, line in enumerate(lines[:-1], start=1):
        try:
            sample = Sample(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise InputError(
                explain(f"line {number} of {path} is damaged ({error})", "lines written by a run", "Remove the line")
            ) from None
        if sample.id in made:
            raise _twice(sample, path)
        made[sample.id] = sample
    return list(made.values())


def _twice(sample: Sample, path: Path) -> InputError:
    return InputError(explain(f"item {sample.id!r} twice, again in {path}", "one line an item", "Remove one of them"))


def _take(stream: BinaryIO, path: Path) -> None:
    """Keep other processes out of the file, for as long as this one lives; not on systems without such locks."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        accepted = "one process a file"
        raise InputError(explain(f"another process writes {path}", accepted, "Wait for it, or end it")) from None


class SampleWriter:
    """Appends lines, each whole and on disk before `add` returns; used as a context manager.

    Raises:
        InputError: on entering, while another process has the file open for writing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> SampleWriter:
        self._stream = self._path.open("a+b")
        _take(self._stream, self._path)
        self._stream.seek(0)
        whole = self._stream.read().rfind(b"\n") + 1
        # the cut end of a line would join the next one
        self._stream.truncate(whole)
        return self

    def add(self, samples: Iterable[Sample]) -> None:
        """Write one line a sample."""
        text = "".join(json.dumps(asdict(sample)) + "\n" for sample in samples)
        self._stream.write(text.encode())
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def __exit__(self, *error: object) -> None:
        self._stream.close()


def write_header(folder: Path, header: Header) -> bool:
    """Write `run.json`, in full or not at all; False where there is one, as when two processes begin at once."""
    beside = write_file(make_folder(folder) / f".{HEADER}.{os.getpid()}", json.dumps(asdict(header), indent=2) + "\n")
    try:
        os.link(beside, folder / HEADER)
    except FileExistsError:
        return False
    finally:
        beside.unlink()
    return True
