"""Work that a bare model does not do: what runs inside hooks and taps is aside, so that it can be counted apart."""

from __future__ import annotations

import threading
from types import TracebackType


class _Depth(threading.local):
    value = 0


_DEPTH = _Depth()


class Aside:
    """A block whose operations belong to plugins, not to the model; blocks may lie inside one another."""

    def __enter__(self) -> None:
        _DEPTH.value += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _DEPTH.value -= 1


def is_aside() -> bool:
    """True while a plugin works in this thread."""
    return _DEPTH.value > 0
