"""What the GPU script is made of, as far as no GPU is needed: checks that catch, goals, rows, the budget, timing."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import checks, summary, timing
from benchmarks.gpu.rivals import Rivals
from benchmarks.gpu.session import Goal, OutOfTime, Session
from vlm_eff.eval.record import read_record

CPU = torch.device("cpu")


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(CPU, tmp_path / "deep" / "record.json", dry=True)


WANT = torch.arange(12.0).double()


def right() -> torch.Tensor:
    made = torch.empty(12)
    made.copy_(WANT)
    return made


def with_a_gap() -> torch.Tensor:
    made = torch.empty(12)
    made[:11] = WANT[:11]
    return made


counter = itertools.count()


def unsteady() -> torch.Tensor:
    return (WANT + next(counter) * 1e-7).float()


@pytest.mark.parametrize(
    ("run", "fine"),
    [
        (right, True),
        (with_a_gap, False),
        (lambda: right() * 1.01, False),
        (lambda: right()[:11], False),
        (lambda: right() / 0.0, False),
    ],
    ids=["right", "gap", "wrong", "short", "infinite"],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_a_check_catches(session: Session, run, fine: bool, absolute: bool) -> None:
    session.check("op", "case", run, WANT, 1e-3, absolute=absolute)
    assert session.rows[0]["right"] is fine
    assert summary.failed(session.rows) is not fine


def test_a_result_that_does_not_repeat_is_caught(session: Session) -> None:
    session.check("op", "case", unsteady, WANT, 1e-3)
    assert session.rows[0]["error"] < 1e-3 and not session.rows[0]["right"]


def test_bits_are_bits(session: Session) -> None:
    one = torch.tensor([1, 2], dtype=torch.uint8)
    session.exact("op", "same", one, one.clone())
    session.exact("op", "other", one, one + 1)
    session.exact("op", "type", one, one.int())
    assert [row["right"] for row in session.rows] == [True, False, False]


def test_poison_covers_all_that_is_handed_out_empty_and_goes_away() -> None:
    like = torch.ones(3)
    made = (
        lambda: torch.empty(3),
        lambda: torch.empty_like(like),
        lambda: like.new_empty(3),
        lambda: torch.empty_strided((3,), (1,)),
    )
    before = [torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty]
    with checks.poisoned():
        assert all(make().isnan().all() for make in made)
        assert torch.empty(2, dtype=torch.int32).tolist() == [2**31 - 1] * 2
    assert before == [torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty]


def test_infinities_in_the_same_places_are_no_distance() -> None:
    want = torch.tensor([1.0, -torch.inf])
    assert checks.relative(want.clone(), want) == checks.farthest(want.clone(), want) == 0
    assert checks.farthest(torch.tensor([1.0, 5.0]), want) == float("inf")
    assert checks.relative(torch.tensor([torch.inf, -torch.inf]), want) == float("inf")


def timed(*each: float) -> timing.Timed:
    return timing.Timed(each, graph=True)


def test_a_ratio_is_the_median_over_rounds() -> None:
    found = timing.ratio(timed(20, 40, 90), timed(10, 10, 10))
    assert found["ratio"] == 4.0 and found["low"] == 2.0 and found["high"] == 9.0


def test_arms_are_interleaved() -> None:
    order: list[str] = []
    clock = timing.Clock(CPU, rounds=4, warmup=1)
    found = clock.times({"a": lambda: order.append("a"), "b": lambda: order.append("b")})
    assert order[:2] == ["a", "b"] and len(order) == 10
    assert all(set(order[at : at + 2]) == {"a", "b"} for at in range(2, 10, 2))
    assert {len(one.each) for one in found.values()} == {4} and not found["a"].graph


@pytest.mark.parametrize(
    ("goal", "got", "met"),
    [
        (Goal(2.0, faster_than="sdpa"), 3.0, True),
        (Goal(3.5, faster_than="sdpa"), 3.0, False),
        (Goal(2.0, faster_than="fa4"), None, None),
        (Goal(0.5, share="copy"), 0.6, True),
        (Goal(0.5, share="matmul"), None, None),
        (Goal(11.0, most_us=True), 10.0, True),
        (Goal(9.0, most_us=True), 10.0, False),
    ],
)
def test_goals(session: Session, goal: Goal, got: float | None, met: bool | None) -> None:
    ratios = {"sdpa flash": {"ratio": 3.0}, "sdpa math": {"ratio": 30.0}, "flex": {"ratio": 1.0}}
    session.dry = False
    assert session._judge(goal, timed(10.0), ratios, {"copy": 0.6}) == {"goal": goal.text, "got": got, "met": met}
    # nothing that a CPU timed is a result
    session.dry = True
    assert session._judge(goal, timed(10.0), ratios, {"copy": 0.6})["met"] is None


def test_shares_and_rows(session: Session) -> None:
    session.ceilings = {"copy": 1e12, "matmul": 1e15}
    row = session.time("op", "case", lambda: None, {"slow": lambda: time.sleep(0.002)}, numbers=1e6, flops=0.0)
    assert row["ours_faster_by"]["slow"]["ratio"] > 2
    microseconds = row["arms"]["ours"]["median_us"]
    assert row["share_of"] == {"copy": pytest.approx(1e6 / (microseconds * 1e-6) / 1e12, rel=0.05)}
    written = read_record(session.output)
    assert written.result[0]["case"] == "case" and written.config["dry_run"] is True
    assert {"triton", "torch"} <= set(written.packages)
    json.dumps(session.rows)


def test_an_error_is_a_row(session: Session) -> None:
    def broken(session: Session) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert isinstance(session.attempt("op", broken), RuntimeError)
    assert session.rows[0]["fatal"] and "test_gpu_parts.py" in session.rows[0]["error"]
    assert summary.failed(session.rows)
    assert not timing.fatal(ValueError("shapes"))


def test_the_budget_ends_whatever_runs(session: Session) -> None:
    session.budget = 0.2

    def endless(session: Session) -> None:
        while True:
            time.sleep(0.01)

    with pytest.raises(OutOfTime), session.limited():
        session.attempt("op", endless)
    assert session.rows == []


def test_rows_of_other_operations_are_kept(session: Session) -> None:
    for op, kind in (("a", "check"), ("a", "time"), ("b", "time")):
        session.add(op, "case", kind)
    again = Session(CPU, session.output, dry=True)
    again.keep(["a"], ("time",))
    assert [(row["op"], row["kind"]) for row in again.rows] == [("a", "check"), ("b", "time")]


def test_rivals_that_do_not_run_are_named_with_their_reason() -> None:
    def broken() -> None:
        raise ValueError("no such head")

    found = Rivals.that_run({"a": lambda: 1, "b": broken}) | Rivals({"c": lambda: 2})
    assert set(found.calls) == {"a", "c"} and found.missing == {"b": "ValueError: no such head"}
    assert set(found.renamed(" x").calls) == {"a x", "c x"}


def test_a_rival_that_loses_the_device_is_no_missing_rival() -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    with pytest.raises(RuntimeError, match="unspecified"):
        Rivals.that_run({"a": lost})


class FakeEvent:
    """A clock that advances by one millisecond each time it is asked."""

    now = itertools.count()

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = next(self.now)

    def elapsed_time(self, other: FakeEvent) -> float:
        return float(other.at - self.at)


class FakeStream:
    def wait_stream(self, other: FakeStream) -> None:
        pass


class FakeGraph:
    """Remembers what was called while it was recording."""

    recording: FakeGraph | None = None

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


@contextlib.contextmanager
def fake_capture(graph: FakeGraph):
    FakeGraph.recording = graph
    try:
        yield
    finally:
        FakeGraph.recording = None


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> timing.Clock:
    """A clock of a device that is not there: every call that the script makes of torch.cuda exists and is answered."""
    answers = {
        "Event": FakeEvent,
        "Stream": FakeStream,
        "CUDAGraph": FakeGraph,
        "graph": fake_capture,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": FakeStream,
        "synchronize": lambda device=None: None,
        "_sleep": lambda cycles: None,
    }
    for name, answer in answers.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, answer)
    return timing.Clock(torch.device("cuda"), rounds=3, warmup=2, _flush=torch.ones(4, dtype=torch.int8))


def test_what_can_be_captured_is_replayed(fake_cuda: timing.Clock) -> None:
    calls: list[str] = []

    def waits_for_the_device() -> None:
        if FakeGraph.recording:
            raise RuntimeError("operation not permitted when stream is capturing")
        calls.append("waits")

    found = fake_cuda.times({"ours": lambda: calls.append("ours"), "waits": waits_for_the_device})
    assert found["ours"].graph and not found["waits"].graph
    # two to warm up, one beside the capture, one inside; the timed runs are replays, or calls
    assert calls.count("ours") == 4 and calls.count("waits") == 3 + 3
    assert found["ours"].each == (1000.0,) * 3 and not fake_cuda._flush.any()


def test_a_capture_that_loses_the_device_ends_the_timing(fake_cuda: timing.Clock) -> None:
    def lost() -> None:
        if FakeGraph.recording:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        fake_cuda.times({"ours": lost})
