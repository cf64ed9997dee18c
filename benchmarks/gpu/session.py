"""One run of the script: its device, its clock, the time it has left, and the rows that it writes as it goes."""

from __future__ import annotations

import secrets
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_eff.eval.record import Record, read_record
from vlm_eff.reference.machine import describe_device, package_versions

from .checks import farthest, poisoned, relative
from .rivals import Rivals
from .timing import Call, Clock, Timed, fatal, ratio

TASK = "operations of vlm_eff.kernels: right against float64, and timed against their rivals, interleaved"
_PACKAGES = ("triton", "flash-attn-4")


class OutOfTime(BaseException):
    """The budget of the run is spent; like an interrupt, nothing that waits for errors may swallow it."""


@dataclass(frozen=True)
class Goal:
    """A number that a measurement is held to.

    wanted:      at least this; at most, where it is microseconds (`most_us`)
    share:       of a measured ceiling, "copy" or "matmul"
    faster_than: rivals by the beginning of their names; the fastest of them counts
    """

    wanted: float
    share: str = ""
    faster_than: str = ""
    most_us: bool = False

    @property
    def text(self) -> str:
        """The goal in words."""
        if self.most_us:
            return f"at most {self.wanted:g} us"
        if self.share:
            return f"at least {self.wanted:.0%} of the measured {self.share} rate"
        return f"at least {self.wanted:g} times faster than {self.faster_than}"


@dataclass
class Session:
    """What a run shares among its steps.

    dry:    tiny shapes on the CPU through the forms of PyTorch, to try the script out; nothing it times means anything
    quick:  fewer rounds and no middle sizes
    budget: seconds, after which the run ends with what it has
    """

    device: torch.device
    output: Path
    dry: bool = False
    quick: bool = False
    budget: float = 540.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    ceilings: dict[str, float] = field(default_factory=dict)
    # fresh inputs each time; the record says which
    seed: int = field(default_factory=lambda: secrets.randbits(24))

    def __post_init__(self) -> None:
        self.generator = torch.Generator(device=self.device).manual_seed(self.seed)
        self.driver = driver()
        self.clock = Clock(self.device, rounds=2 if self.dry else 15 if self.quick else 40, warmup=1 if self.dry else 5)

    @property
    def backend(self) -> str:
        """The form under test."""
        return "torch" if self.dry else "triton"

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Types the checks run in."""
        return (torch.float16, torch.bfloat16)

    def size(self, full: int, dry: int) -> int:
        """A length: the real one, or one that a CPU does in no time."""
        return dry if self.dry else full

    def heads(self, query: int, key: int) -> tuple[int, int]:
        """Query and key heads: the real ones, or one key head that serves as many."""
        return (query // key, 1) if self.dry else (query, key)

    def left(self) -> float:
        """Seconds left."""
        return self.budget - (time.monotonic() - self.started)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        """Fresh standard normal numbers."""
        return torch.randn(*shape, generator=self.generator, device=self.device).to(dtype)

    def add(self, op: str, case: str, kind: str, **values: Any) -> dict[str, Any]:
        """Keep a row and write the record."""
        row = {"op": op, "case": case, "kind": kind, **values}
        self.rows.append(row)
        self.write()
        return row

    def check(
        self, op: str, case: str, run: Callable[[], Tensor], want: Tensor, tolerance: float, *, absolute: bool = False
    ) -> None:
        """Run with poisoned outputs, twice, and compare with float64 and with itself, bit for bit."""
        with poisoned():
            got, again = run(), run()
        error = farthest(got, want) if absolute else relative(got, want)
        same = torch.equal(got, again) or bool(got.isnan().any())
        self.add(op, case, "check", error=error, tolerance=tolerance, repeats=same, right=error <= tolerance and same)

    def exact(self, op: str, case: str, got: Tensor, want: Tensor) -> None:
        """Compare bit for bit."""
        right = got.shape == want.shape and got.dtype == want.dtype and torch.equal(got, want)
        self.add(op, case, "check", error=0.0 if right else farthest(got.double(), want.double()), right=right)

    def time(
        self,
        op: str,
        case: str,
        ours: Call,
        rivals: dict[str, Call] | Rivals,
        *,
        numbers: float = 0.0,
        flops: float = 0.0,
        goals: tuple[Goal, ...] = (),
        more: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Time ours against rivals and keep a row: medians, ratios, shares of the ceilings, goals.

        numbers: bytes that must be moved; flops: operations that must be done
        """
        if isinstance(rivals, dict):
            rivals = Rivals(rivals)
        timed = self.clock.times({"ours": ours} | rivals.calls)
        mine = timed["ours"]
        ratios = {name: ratio(timed[name], mine) for name in rivals.calls}
        rates = {"copy": numbers, "matmul": flops}
        shares = {
            name: round(amount / (mine.median * 1e-6) / self.ceilings[name], 3)
            for name, amount in rates.items()
            if amount and self.ceilings.get(name)
        }
        return self.add(
            op,
            case,
            "time",
            arms={name: one.to_dict() for name, one in timed.items()},
            ours_faster_by=ratios,
            share_of=shares,
            bytes=numbers,
            flops=flops,
            missing=rivals.missing,
            goals=[self._judge(goal, mine, ratios, shares) for goal in goals],
            **(more or {}),
        )

    def _judge(self, goal: Goal, mine: Timed, ratios: dict[str, Any], shares: dict[str, float]) -> dict[str, Any]:
        against = [one["ratio"] for name, one in ratios.items() if name.startswith(goal.faster_than)]
        # the best rival is the one we are least ahead of
        got = shares.get(goal.share) if goal.share else min(against, default=None)
        got = mine.median if goal.most_us else got
        met = None if got is None else got <= goal.wanted if goal.most_us else got >= goal.wanted
        return {"goal": goal.text, "got": got, "met": None if self.dry else met}

    def write(self) -> None:
        """Write all rows so far."""
        self.output.parent.mkdir(parents=True, exist_ok=True)
        Record(
            task=TASK,
            task_version="1",
            model="no model: random tensors in the shapes of LLaVA-1.5-7B, LLaVA-NeXT-7B and Qwen2.5-VL-7B",
            config={
                "dry_run": self.dry,
                "quick": self.quick,
                "backend": self.backend,
                "ceilings_per_second": self.ceilings,
                "driver": self.driver,
                "rounds": self.clock.rounds,
                "seed": self.seed,
            },
            device=describe_device(self.device),
            n=self.clock.rounds,
            result=self.rows,
            packages=package_versions() | {name: _version(name) for name in _PACKAGES},
        ).write(self.output)

    def keep(self, names: list[str], kinds: tuple[str, ...]) -> None:
        """Take over the rows of the record that is there, except those of these kinds of these operations."""
        if self.output.exists():
            rows = read_record(self.output).result
            self.rows = [row for row in rows if row["op"] not in names or row["kind"] not in kinds]

    def attempt(self, op: str, step: Callable[[Session], None]) -> BaseException | None:
        """Run one step; an error becomes a row and is returned, so that the other steps still run."""
        try:
            step(self)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {str(error)[:500]} ({Path(where.filename).name}:{where.lineno})"
            self.add(op, step.__name__, "error", error=said, fatal=fatal(error))
            return error
        return None

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Raise OutOfTime inside when the budget is spent, wherever the run is."""

        def stop(*_: object) -> None:
            raise OutOfTime

        before = signal.signal(signal.SIGALRM, stop)
        # again after some seconds: Python drops what is raised while it destroys an object
        signal.setitimer(signal.ITIMER_REAL, max(self.left(), 0.001), 5.0)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def driver() -> str:
    """Version of the GPU's driver, as far as it can be told."""
    if not torch.cuda.is_available():
        return "none"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
