"""FLOPs of denoisers and of units inside them, measured once a shape while a full call runs anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

Shape = tuple[Any, ...]


class Work:
    """FLOPs by shape, as torch counts them (2 a multiply-add)."""

    def __init__(self) -> None:
        self._whole: dict[Shape, int] = {}
        self._parts: dict[tuple[Shape, str], int] = {}
        self._counter: FlopCounterMode | None = None
        self._shape: Shape = ()
        self._cheaper = 0

    def whole(self, shape: Shape) -> int:
        """FLOPs of a full call; 0 while none was measured."""
        return self._whole.get(shape, 0)

    def part(self, shape: Shape, unit: str) -> int:
        """FLOPs of a unit in a call of that shape; 0 while it was not measured."""
        return self._parts.get((shape, unit), 0)

    def measure(self, shape: Shape, compute: Callable[[], Any], full: Callable[[], bool]) -> Any:
        """Run a call; the first of each shape that skipped nothing, as `full()` tells afterwards, is counted."""
        if shape in self._whole:
            return compute()
        self._counter, self._shape, self._cheaper = FlopCounterMode(display=False), shape, 0
        try:
            with self._counter:
                made = compute()
            if full():
                self._whole[shape] = int(self._counter.get_total_flops()) + self._cheaper
            return made
        finally:
            self._counter = None

    def cheaper(self, flops: int) -> None:
        """What runs now needs so many FLOPs less than the bare model would: they are added to what is counted."""
        self._cheaper += flops

    def inside(self, unit: str, compute: Callable[[], Any]) -> Any:
        """Run a unit of the call; counted while the call is."""
        since = self.so_far()
        made = compute()
        self.note(unit, since)
        return made

    def so_far(self) -> int:
        """FLOPs that the bare model would have needed of the call until now; 0 while none is counted."""
        return 0 if self._counter is None else int(self._counter.get_total_flops()) + self._cheaper

    def note(self, unit: str, since: int) -> None:
        """What was computed of the call since `so_far()` gave `since` is the work of a unit."""
        if self._counter is not None:
            self._parts[self._shape, unit] = self.so_far() - since
