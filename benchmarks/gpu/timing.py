"""Times of several ways to do one thing, interleaved: every round runs each of them once, in an order drawn anew.

On a GPU the work of an arm is captured as a CUDA graph and replayed, so that the time is the device's and not Python's
(an arm that cannot be captured is run as it is, and its row says so). Before each run the cache of the device is
overwritten and the device is kept busy until the host has queued what is to be timed. On a CPU the clock is the
host's: for trying the script out, never for a number.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

Call = Callable[[], object]
_RESAMPLES = 2000
# about 0.2 ms at 1.7 GHz: a graph is queued in 10 us, a call from Python in 20 to 100
_BUSY = 400_000
_FLUSH = 256 << 20


@dataclass(frozen=True)
class Timed:
    """Times of one arm, in microseconds, round by round.

    graph: replayed as a CUDA graph; False: run from Python, whose launches then count where they are slower
    """

    each: tuple[float, ...]
    graph: bool

    @property
    def median(self) -> float:
        """Median, microseconds."""
        return statistics.median(self.each)

    def to_dict(self) -> dict[str, object]:
        """Median and spread for a record."""
        low, high = np.quantile(self.each, (0.1, 0.9))
        return {
            "median_us": round(self.median, 2),
            "tenth_us": round(float(low), 2),
            "ninetieth_us": round(float(high), 2),
            "n": len(self.each),
            "graph": self.graph,
        }


@dataclass
class Clock:
    """Times arms on one device.

    rounds: runs of each arm that count; warmup: runs before them
    """

    device: torch.device
    rounds: int = 30
    warmup: int = 5
    _flush: torch.Tensor | None = field(default=None, repr=False)

    @property
    def cuda(self) -> bool:
        """Whether there is a device whose time can be taken."""
        return self.device.type == "cuda"

    def times(self, arms: dict[str, Call]) -> dict[str, Timed]:
        """Time all arms, interleaved."""
        ready = {name: self._prepare(call) for name, call in arms.items()}
        each: dict[str, list[float]] = {name: [] for name in arms}
        rng = np.random.default_rng(0)
        names = list(arms)
        for _ in range(self.rounds):
            pending = {name: self._once(ready[name][0]) for name in rng.permutation(names)}
            if self.cuda:
                torch.cuda.synchronize(self.device)
            for name, elapsed in pending.items():
                each[name].append(elapsed())
        return {name: Timed(tuple(each[name]), ready[name][1]) for name in names}

    def _prepare(self, call: Call) -> tuple[Call, bool]:
        for _ in range(self.warmup):
            call()
        if not self.cuda:
            return call, False
        torch.cuda.synchronize(self.device)
        graph = captured(call)
        return (call, False) if graph is None else (graph.replay, True)

    def _once(self, run: Call) -> Callable[[], float]:
        if not self.cuda:
            started = time.perf_counter()
            run()
            spent = (time.perf_counter() - started) * 1e6
            return lambda: spent
        if self._flush is None:
            self._flush = torch.empty(_FLUSH, dtype=torch.int8, device=self.device)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        torch.cuda._sleep(_BUSY)
        first.record()
        run()
        last.record()
        return lambda: first.elapsed_time(last) * 1e3


def captured(call: Call) -> torch.cuda.CUDAGraph | None:
    """A CUDA graph of `call`, or None where it cannot be captured (it waits for the device, or allocates outside)."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        torch.cuda.synchronize()
        if fatal(error):
            raise
        return None
    return graph


def fatal(error: BaseException) -> bool:
    """Whether the device is lost to this process: nothing that runs after such an error can be believed."""
    text = str(error).lower()
    signs = ("illegal memory access", "misaligned address", "device-side assert", "unspecified launch failure")
    return any(sign in text for sign in signs)


def ratio(slow: Timed, fast: Timed) -> dict[str, float]:
    """How many times faster `fast` is: the median over rounds, with a 95 % interval by bootstrap over the rounds."""
    ratios = np.asarray(slow.each) / np.asarray(fast.each)
    resampled = np.median(np.random.default_rng(0).choice(ratios, size=(_RESAMPLES, len(ratios))), axis=1)
    low, high = np.quantile(resampled, (0.025, 0.975))
    return {"ratio": round(float(np.median(ratios)), 3), "low": round(float(low), 3), "high": round(float(high), 3)}
