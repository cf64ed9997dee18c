"""Paired timing on a clock of our own."""

import pytest

from vlm_eff.core.errors import ConfigError
from vlm_eff.eval.measure import paired_times


class Machine:
    """A clock that work moves; every run is slower than the one before, as on a machine that warms up."""

    def __init__(self) -> None:
        self.now = 0.0
        self.drift = 1.0
        self.order: list[str] = []

    def work(self, name: str, seconds: float) -> None:
        self.drift *= 1.01
        self.now += seconds * self.drift
        self.order.append(name)


def test_ratio_survives_a_drifting_machine() -> None:
    machine = Machine()
    found = paired_times(
        lambda: machine.work("first", 1.0),
        lambda: machine.work("second", 2.0),
        pairs=40,
        warmup=3,
        clock=lambda: machine.now,
    )
    assert found.ratio == pytest.approx(0.5, rel=0.02)
    assert found.low <= found.ratio <= found.high
    assert found.high - found.low < 0.02
    assert found.pairs == 40
    assert found.first_ms < found.second_ms


def test_order_inside_pairs_is_mixed_and_repeatable() -> None:
    def order(seed: int) -> list[str]:
        machine = Machine()
        paired_times(
            lambda: machine.work("a", 1.0),
            lambda: machine.work("b", 1.0),
            pairs=20,
            warmup=0,
            seed=seed,
            clock=lambda: machine.now,
        )
        return machine.order

    made = order(0)
    firsts = made[::2]
    assert all({one, two} == {"a", "b"} for one, two in zip(firsts, made[1::2], strict=True))
    assert 4 <= firsts.count("a") <= 16
    assert made == order(0)
    assert made != order(1)


def test_warmup_is_not_timed() -> None:
    machine = Machine()
    found = paired_times(
        lambda: machine.work("first", 100.0 if len(machine.order) < 4 else 1.0),
        lambda: machine.work("second", 1.0),
        pairs=5,
        warmup=2,
        clock=lambda: machine.now,
    )
    assert found.ratio == pytest.approx(1.0, abs=0.05)
    assert len(machine.order) == 14


@pytest.mark.parametrize("wrong", [{"pairs": 2}, {"warmup": -1}])
def test_too_few_pairs_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="3 pairs or more"):
        paired_times(lambda: None, lambda: None, **wrong)
