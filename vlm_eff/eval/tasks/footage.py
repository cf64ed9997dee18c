"""Where a benchmark's videos lie: endings, folders of frames, and subtitles."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_eff.core.errors import InputError, explain
from vlm_eff.eval.tasks.files import inside
from vlm_eff.eval.tasks.rows import read_json

ENDINGS = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov", ".gif")
_SRT_TIME = re.compile(r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})\s*-->\s*(\d+):(\d\d):(\d\d)[,.](\d{1,3})")
_MARKUP = re.compile(r"<[^>]*>|\{\\[^}]*\}")


def video_file(folder: Path, name: str) -> Path:
    """The video of that name, with or without its ending; the first accepted ending where there is none on disk.

    Raises:
        InputError: the name leads out of the folder.
    """
    path = inside(folder, name)
    if path.suffix in ENDINGS or path.exists():
        return path
    found = [path.with_name(path.name + ending) for ending in ENDINGS]
    return next((one for one in found if one.exists()), found[0])


@dataclass(frozen=True)
class Line:
    """One subtitle: seconds from the start of the video, and its text on one line."""

    start: float
    end: float
    text: str


def read_srt(path: Path) -> list[Line]:
    """The subtitles of a SubRip file, without their markup.

    Raises:
        InputError: not there, no UTF-8, or a block without times.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(explain(f"{path.name} is no UTF-8 text", "SubRip subtitles", "Convert the file")) from None
    except OSError as error:
        problem = f"{path} cannot be read ({error.strerror})"
        raise InputError(explain(problem, "SubRip subtitles", "Check the path")) from None
    lines = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").strip()):
        times = _SRT_TIME.search(block)
        if times is None:
            if block.strip():
                got = f"{path.name} holds a block without times: {block.strip()[:40]!r}"
                raise InputError(explain(got, "blocks with 00:00:01,000 --> 00:00:02,000", "Check the file"))
            continue
        spoken = " ".join(_MARKUP.sub("", block[times.end() :]).split())
        if spoken:
            lines.append(Line(_seconds(*times.groups()[:4]), _seconds(*times.groups()[4:]), spoken))
    return lines


def read_subtitle_json(path: Path, first: float = 0.0) -> list[Line]:
    """Subtitles as a list of {start, end, line} ("00:00:01.000") or {timestamp: [s, e], text} (seconds).

    first: seconds of the subtitles at which the video starts; earlier ones are left out

    Raises:
        InputError: not there, broken, or of another form.
    """
    content = read_json(path)
    if not isinstance(content, list):
        got = f"{path.name} holds {type(content).__name__}"
        raise InputError(explain(got, "a list of subtitles", "Check the file"))
    lines = []
    for place, one in enumerate(content):
        try:
            line = _line(one)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            got = f"{path.name}, record {place} cannot be read ({type(error).__name__}: {error})"
            accepted = "{start, end, line} or {timestamp: [start, end], text}"
            raise InputError(explain(got, accepted, "Check the file")) from None
        if line.end >= first and line.text:
            lines.append(Line(max(line.start - first, 0.0), line.end - first, line.text))
    return lines


def _line(one: Mapping[str, Any]) -> Line:
    if "timestamp" in one:
        start, end = one["timestamp"]
        # the last subtitle of a video may have no end
        return Line(float(start), float(end if end is not None else start), " ".join(str(one["text"]).split()))
    return Line(_clock(one["start"]), _clock(one["end"]), " ".join(str(one["line"]).split()))


def _clock(text: str) -> float:
    hours, minutes, seconds = text.split(":")
    return _seconds(hours, minutes, *seconds.replace(",", ".").partition(".")[::2])


def _seconds(hours: str, minutes: str, seconds: str, fraction: str) -> float:
    return int(hours) * 3600 + int(minutes) * 60 + float(f"{seconds}.{fraction}")
