"""What an animated GIF or WebP file says of its frames, read from its blocks; nothing is decoded.

GIF89a specification (CompuServe 1990), sections 18 to 27; WebP container specification (Google), animation chunks.
"""

from __future__ import annotations

from pathlib import Path

# a GIF or WebP that gives no delay, or one that no display can follow, is shown at ten frames a second; as in FFmpeg
_SHORTEST_S, _USUAL_S = 0.02, 0.1
_TRAILER, _EXTENSION, _IMAGE, _CONTROL = 0x3B, 0x21, 0x2C, 0xF9


def is_animation(path: Path) -> bool:
    """Whether a file begins as GIF or WebP; a still picture may too."""
    with path.open("rb") as stream:
        start = stream.read(12)
    return _is_gif(start) or _is_webp(start)


def look_over(path: Path) -> tuple[list[float], bool]:
    """Seconds that each whole frame is shown, and whether the file is whole."""
    data = path.read_bytes()
    try:
        delays, whole = _gif(data) if _is_gif(data) else _webp(data) if _is_webp(data) else ([], True)
    except _Cut as cut:
        delays, whole = cut.delays, False
    return [delay if delay >= _SHORTEST_S else _USUAL_S for delay in delays], whole


def _is_gif(data: bytes) -> bool:
    return data[:6] in (b"GIF87a", b"GIF89a")


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


class _Cut(Exception):
    """The file ends inside a block; holds the frames before that."""

    def __init__(self, delays: list[float]) -> None:
        self.delays = delays


def _gif(data: bytes) -> tuple[list[float], bool]:
    delays: list[float] = []
    try:
        place, delay = 13 + _colours(data[10]), 0.0
        while data[place] != _TRAILER:
            kind = data[place]
            if kind == _EXTENSION:
                if data[place + 1] == _CONTROL:
                    delay = int.from_bytes(data[place + 4 : place + 6], "little") / 100
                place = _after_blocks(data, place + 2)
            elif kind == _IMAGE:
                # the descriptor, its own colours, and one byte that says how wide the codes are
                place = _after_blocks(data, place + 10 + _colours(data[place + 9]) + 1)
                delays.append(delay)
                delay = 0.0
            else:
                return delays, False
    except IndexError:
        raise _Cut(delays) from None
    return delays, True


def _colours(packed: int) -> int:
    """Bytes of a colour table."""
    return 3 * 2 ** ((packed & 7) + 1) if packed & 0x80 else 0


def _after_blocks(data: bytes, place: int) -> int:
    while data[place]:
        place += data[place] + 1
    return place + 1


def _webp(data: bytes) -> tuple[list[float], bool]:
    delays: list[float] = []
    end = 8 + int.from_bytes(data[4:8], "little")
    place = 12
    while place + 8 <= end:
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        if place + 8 + size > len(data):
            raise _Cut(delays)
        if data[place : place + 4] == b"ANMF":
            # after x, y, width and height, three bytes each
            delays.append(int.from_bytes(data[place + 20 : place + 23], "little") / 1000)
        place += 8 + size + size % 2
    return delays, True
