"""The undo stack and the handle around it, without a model."""

from typing import Any

import pytest

from vlm_eff.core.errors import ConflictError, StateError
from vlm_eff.core.handle import Handle, HandleNeverFired, Undo
from vlm_eff.core.report import PrefillReport, StageReport, Stats
from vlm_eff.core.resources import check_conflicts
from vlm_eff.tokens import fastv, pyramiddrop, random_drop


class Runtime:
    """Stands for the runtime of a model that was called `calls` times."""

    def __init__(self, calls: int) -> None:
        self.active, self.calls = True, calls

    def stats(self) -> Stats:
        return Stats(("fastv",), "llava", calls=self.calls)


def handle(calls: int = 1, *actions: Any) -> tuple[Handle, Runtime]:
    undo, runtime = Undo(), Runtime(calls)
    for action in actions:
        undo.push(action)
    return Handle((fastv(),), runtime, undo), runtime  # type: ignore[arg-type]


def test_undo_runs_backwards_and_once() -> None:
    done: list[int] = []
    undo = Undo()
    for number in range(3):
        undo.push(lambda number=number: done.append(number))
    undo.run()
    undo.run()
    assert done == [2, 1, 0]


def test_undo_goes_on_after_a_failure_and_raises_the_first() -> None:
    done: list[str] = []

    def fail(name: str) -> None:
        done.append(name)
        raise RuntimeError(name)

    undo = Undo()
    for action in (lambda: done.append("a"), lambda: fail("b"), lambda: fail("c")):
        undo.push(action)
    with pytest.raises(RuntimeError, match="c"):
        undo.run()
    assert done == ["c", "b", "a"]


def test_detach_undoes_once() -> None:
    done: list[int] = []
    made, runtime = handle(1, lambda: done.append(1))
    with made:
        assert made.attached
    made.detach()
    assert done == [1]
    assert not made.attached
    assert not runtime.active


def test_a_detached_handle_cannot_be_entered_or_paused() -> None:
    made, _ = handle()
    made.detach()
    with pytest.raises(StateError, match="detached"), made:
        pass
    with pytest.raises(StateError, match="cannot pause"), made.paused():
        pass


def test_pauses_nest_and_end_with_an_error() -> None:
    made, runtime = handle()
    with made.paused():
        with made.paused():
            assert not runtime.active
        assert not runtime.active
    assert runtime.active
    with pytest.raises(ZeroDivisionError), made.paused():
        raise ZeroDivisionError
    assert runtime.active


def test_a_handle_that_never_fired_warns_unless_there_was_an_error() -> None:
    with pytest.warns(HandleNeverFired, match="fastv was attached but its hooks never ran"):
        handle(0)[0].detach()
    with pytest.raises(ZeroDivisionError), handle(0)[0]:
        raise ZeroDivisionError


def test_one_writer_a_resource() -> None:
    check_conflicts([random_drop(layer=0).bind(_context()), fastv().bind(_context())])
    with pytest.raises(ConflictError, match="'fastv' and 'pyramiddrop' both change"):
        check_conflicts([fastv().bind(_context()), pyramiddrop().bind(_context())])
    with pytest.raises(ConflictError, match="between decoder layers"):
        check_conflicts([fastv().bind(_context()), fastv().bind(_context())])


def _context() -> Any:
    from vlm_eff.core.plugin import BindContext

    return BindContext("llava", 8)


def report(**changed: Any) -> PrefillReport:
    values: dict[str, Any] = {
        "rows": 2, "length": 10, "past": 0, "visual": (4, 2), "visual_per_layer": (3.0, 1.0),
        "sequence_per_layer": (10, 8), "attended_per_layer": (10, 8), "asked_per_layer": (3.0, 1.5),
        "stages": (StageReport("fastv", 1, (4, 2), (1, 1), 2),), "kv_tokens": (10, 8), "kv_logical": 10,
        "kv_bytes": 90, "kv_bytes_bare": 100, "flops": 9.0, "flops_bare": 10.0, "host_ms": 1.0,
        "selection_ms": 0.5, "masks_built": 1,
    }  # fmt: skip
    return PrefillReport(**values | changed)


def test_a_report_averages_over_layers_and_rows() -> None:
    made = report()
    assert made.n_eq == 2.0
    assert made.n_eq_asked == 2.25
    assert made.visual_tokens == 3.0


def test_stats_name_the_last_prefill_with_visual_tokens() -> None:
    seen, text = report(), report(visual=(0, 0), stages=())
    stats = Stats(("fastv",), "llava", [seen, text], decode_steps=3, calls=5)
    assert stats.last is seen
    plain = stats.to_dict()
    assert plain["prefills"][0]["n_eq"] == 2.0
    assert plain["decode_steps"] == 3
    for part in ("fastv on llava", "2 prefills", "n_eq", "90 stored", "layer 1: 3 -> 1"):
        assert part in str(stats)
    assert "not called" in str(Stats(("fastv",), "llava"))
    assert "no visual tokens" in str(Stats(("fastv",), "llava", [text], calls=1))
