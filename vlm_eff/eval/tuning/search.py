"""The search itself: Optuna proposes, costs refuse for free, and what is left is asked.

Every proposal is drawn by a sampler seeded with its number, so that a study that was cut and taken up again goes on as
if it had not been. Proposals over budget tell the optimiser so by its constraints and are never asked.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_eff.core.config import to_dict
from vlm_eff.core.errors import CapabilityError, ConfigError, InputError, VlmEffError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.tuning.budget import Budget, Costs
from vlm_eff.recipes.search_space import Space

# proposals over budget are free, but a space that holds nothing else has to end
_TRIES = 12
_GUESSES = 10


@dataclass(frozen=True)
class Candidate:
    """One proposal that met the budget.

    params: as the space draws them; costs: of one question; loyalty: see `Questions.loyalty`; number: of the proposal
    """

    number: int
    params: dict[str, Any]
    plugins: tuple[Plugin, ...]
    costs: Costs
    loyalty: float


@dataclass(frozen=True)
class Found:
    """What a search found: candidates that were asked, best first, and how many proposals were refused unasked."""

    candidates: tuple[Candidate, ...]
    refused: int

    @property
    def best(self) -> Candidate:
        """The candidate of the highest loyalty."""
        return self.candidates[0]


class _Trial:
    """Lets a space draw its numbers from an Optuna trial."""

    def __init__(self, trial: Any) -> None:
        self._trial = trial

    def choice(self, name: str, options: Sequence[str]) -> str:
        return str(self._trial.suggest_categorical(name, list(options)))

    def whole(self, name: str, low: int, high: int) -> int:
        return int(self._trial.suggest_int(name, low, high))

    def real(self, name: str, low: float, high: float) -> float:
        return float(self._trial.suggest_float(name, low, high))


def search(
    space: Space,
    budget: Budget,
    probe: Callable[[tuple[Plugin, ...]], Costs],
    ask: Callable[[tuple[Plugin, ...]], float],
    *,
    trials: int,
    seed: int = 0,
    journal: Path | None = None,
    about: dict[str, Any] | None = None,
    watch: Callable[[int, int, float], None] | None = None,
) -> Found:
    """Search a space for the candidate that `ask` gives the highest value.

    probe:   costs of a candidate, called for every proposal; ask: its value, called where the costs meet the budget
    trials:  candidates that are asked
    journal: file of the study; what it holds already counts. about: what must be the same for that
    watch:   called with candidates asked, in all, and the best value

    Raises:
        CapabilityError: Optuna is not installed.
        ConfigError: fewer than one trial.
        InputError: a journal of another study, or no proposal that meets the budget.
    """
    if trials < 1:
        raise ConfigError(explain(f"trials={trials}", "1 or more", "Ask more candidates"))
    study = _study(space, journal, {"budget": budget.to_dict(), "seed": seed, **(about or {})})
    known = {trial.user_attrs["plugins"]: trial for trial in study.trials if "loyalty" in trial.user_attrs}
    found = len(known)
    for _ in range(_TRIES * trials):
        if found >= trials:
            break
        trial = _propose(study, seed)
        made = _measured(space, trial, probe)
        if made is None or any(excess > 0 for excess in made[1].over(budget).values()):
            _refuse(study, trial, None if made is None else made[1].over(budget))
            continue
        plugins, costs = made
        text = json.dumps(to_dict(plugins))
        again = known.get(text)
        value = ask(plugins) if again is None else again.user_attrs["loyalty"]
        trial.set_user_attr("costs", [costs.n_eq, costs.flops, costs.kv])
        trial.set_user_attr("plugins", text)
        trial.set_user_attr("loyalty", value)
        study.tell(trial, value)
        if again is None:
            known[text] = study.trials[trial.number]
            found += 1
            if watch is not None:
                watch(found, trials, max(one.user_attrs["loyalty"] for one in known.values()))
    return _found(space, study)


def _study(space: Space, journal: Path | None, about: dict[str, Any]) -> Any:
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        do = 'Run: pip install "vlm-eff[tune]"'
        raise CapabilityError(explain("the package optuna is not installed", "optuna 5 or newer", do)) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = None if journal is None else JournalStorage(JournalFileBackend(str(journal)))
    study = optuna.create_study(study_name="tune", storage=storage, direction="maximize", load_if_exists=True)
    # as it comes back from the file
    about = json.loads(json.dumps(about | {"space": repr(space)}))
    before = study.user_attrs.get("about")
    if before is not None and before != about:
        wrong = ", ".join(sorted(key for key in {**before, **about} if before.get(key) != about.get(key)))
        accepted = "the same model, questions, budget, seed and space"
        raise InputError(explain(f"{journal} holds a search with another {wrong}", accepted, "Choose another output"))
    if before is None:
        study.set_user_attr("about", about)
        for start in space.starts():
            study.enqueue_trial(start)
    return study


def _propose(study: Any, seed: int) -> Any:
    import optuna

    with warnings.catch_warnings():
        # `group` keeps conditional numbers with their condition, and is called experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.TPESampler(
            seed=seed * 100_003 + len(study.trials), multivariate=True, group=True, n_startup_trials=_GUESSES
        )
        return study.ask()


def _measured(
    space: Space, trial: Any, probe: Callable[[tuple[Plugin, ...]], Costs]
) -> tuple[tuple[Plugin, ...], Costs] | None:
    """Plugins of a proposal and their costs; None where the model cannot carry it, or its schedule cannot be."""
    params = space.draw(_Trial(trial))
    trial.set_user_attr("params", params)
    try:
        plugins = space.plugins(params)
        return plugins, probe(plugins)
    except VlmEffError as error:
        trial.set_user_attr("refused", str(error))
        return None


def _refuse(study: Any, trial: Any, over: dict[str, float] | None) -> None:
    import optuna

    for name, excess in (over or {"made": 1.0}).items():
        trial.set_constraint(name, excess)
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)


def _found(space: Space, study: Any) -> Found:
    asked: dict[str, Candidate] = {}
    for trial in study.trials:
        noted = trial.user_attrs
        if "loyalty" in noted and noted["plugins"] not in asked:
            asked[noted["plugins"]] = Candidate(
                trial.number, noted["params"], space.plugins(noted["params"]), Costs(*noted["costs"]), noted["loyalty"]
            )
    refused = sum("loyalty" not in trial.user_attrs and trial.state.is_finished() for trial in study.trials)
    if not asked:
        got = f"no candidate among {refused} that meets the budget"
        raise InputError(explain(got, "a budget that the methods can reach", "Give a larger budget"))
    # of equals the earlier one
    return Found(tuple(sorted(asked.values(), key=lambda one: (-one.loyalty, one.number))), refused)
