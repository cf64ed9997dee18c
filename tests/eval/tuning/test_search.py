"""The search: the same twice, taken up where it was cut, and nothing over budget is asked."""

import sys
from pathlib import Path
from typing import Any

import pytest

from vlm_eff.core.errors import CapabilityError, ConfigError, InputError
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.tuning.budget import Budget, Costs, parse_budget
from vlm_eff.eval.tuning.search import search
from vlm_eff.recipes.search_space import Space

SPACE = Space(8, 144, 156, tokens=0.5, entries=("divprune", "uniform_grid"), decoders=("fastv", "pyramiddrop"))
BUDGET = Budget(n_eq=0.45)


class Model:
    """Costs and values without a model: more tokens are better, and `asked` counts what was asked."""

    def __init__(self) -> None:
        self.asked: list[Costs] = []

    def probe(self, plugins: tuple[Plugin, ...]) -> Costs:
        share = SPACE.n_eq(plugins) / 144
        return Costs(share, share, share)

    def ask(self, plugins: tuple[Plugin, ...]) -> float:
        self.asked.append(self.probe(plugins))
        return self.asked[-1].n_eq - 0.1 * (plugins[0].name == "uniform_grid")


def found(model: Model, trials: int = 8, **settings: Any) -> Any:
    return search(SPACE, BUDGET, model.probe, model.ask, trials=trials, **settings)


def test_nothing_over_budget_is_asked_and_the_best_comes_first() -> None:
    model = Model()
    made = found(model)
    assert len(model.asked) == len(made.candidates) == 8 and made.refused > 0
    assert all(costs.n_eq <= 0.45 + 1e-6 for costs in model.asked)
    assert made.best.loyalty == max(one.loyalty for one in made.candidates) > 0.38
    assert made.best.plugins == SPACE.plugins(made.best.params)


def test_a_broken_cost_check_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Costs, "over", lambda self, budget: dict.fromkeys(budget.limits, -1.0))
    with pytest.raises(AssertionError):
        test_nothing_over_budget_is_asked_and_the_best_comes_first()


def test_it_is_the_same_when_it_was_cut(tmp_path: Path) -> None:
    whole = found(Model(), seed=3)
    journal, first, second = tmp_path / "study.jsonl", Model(), Model()
    found(first, trials=5, seed=3, journal=journal)
    assert found(second, seed=3, journal=journal) == whole
    assert len(first.asked) == 5 and len(second.asked) == 3
    with pytest.raises(InputError, match="another seed"):
        found(Model(), seed=5, journal=journal)


def test_what_a_model_cannot_carry_is_refused_and_nothing_left_says_so() -> None:
    def cannot(plugins: tuple[Plugin, ...]) -> Costs:
        raise CapabilityError("no")

    with pytest.raises(InputError, match="no candidate among"):
        search(SPACE, BUDGET, cannot, Model().ask, trials=1)
    with pytest.raises(ConfigError, match="trials=0"):
        found(Model(), trials=0)


def test_optuna_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(CapabilityError, match=r"vlm-eff\[tune\]"):
        found(Model(), trials=1)


def test_budgets_are_read() -> None:
    assert parse_budget("ttft=0.5, kv=0.25") == Budget(ttft=0.5, kv=0.25)
    assert Budget(ttft=0.5, flops=0.4, kv=0.25).limits == {"flops": 0.4, "kv": 0.25}
    for wrong in ("", "time=1", "kv=0.5,kv=0.5", "kv=much", "kv=0", "kv=1.5", "kv=nan"):
        with pytest.raises(ConfigError, match="Accepted"):
            parse_budget(wrong)
