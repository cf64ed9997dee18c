"""Budgets, and what a candidate costs: known from one question, before any answer is looked at."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.handle import Handle
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.costs.prompt import prompt_costs
from vlm_eff.eval.subject import Subject
from vlm_eff.models.attach import attach
from vlm_eff.tokens import uniform_grid

_HALVINGS = 7


@dataclass(frozen=True)
class Budget:
    """The most that may be used, as a share of what the bare model uses; None is no limit.

    ttft:  time to the first token: searched by FLOPs of the decoder, measured once something is found
    flops: of the prefill, decoder alone; n_eq: visual tokens averaged over layers; kv: bytes of the cache
    """

    ttft: float | None = None
    flops: float | None = None
    n_eq: float | None = None
    kv: float | None = None

    def __post_init__(self) -> None:
        for one in fields(self):
            share = getattr(self, one.name)
            if share is not None and not (math.isfinite(share) and 0 < share <= 1):
                raise ConfigError(explain(f"budget {one.name}={share:g}", "above 0, up to 1", "Give a share of bare"))
        if all(getattr(self, one.name) is None for one in fields(self)):
            raise ConfigError(explain("an empty budget", ", ".join(f.name for f in fields(self)), "Say what to save"))

    @property
    def limits(self) -> dict[str, float]:
        """Limits by the names of `Costs`; a limit on time is one on FLOPs until it can be measured."""
        work = min((one for one in (self.ttft, self.flops) if one is not None), default=None)
        found = {"flops": work, "n_eq": self.n_eq, "kv": self.kv}
        return {name: limit for name, limit in found.items() if limit is not None}

    def to_dict(self) -> dict[str, float]:
        """What was given, by name."""
        return {name: share for name, share in asdict(self).items() if share is not None}


def parse_budget(text: str) -> Budget:
    """Read a budget such as `ttft=0.5,kv=0.25`.

    Raises:
        ConfigError: an unknown name, one that stands twice, or a share that is none.
    """
    known, found = tuple(one.name for one in fields(Budget)), dict[str, float]()
    for part in text.split(","):
        name, _, value = (one.strip() for one in part.partition("="))
        try:
            if name not in known or name in found:
                raise ValueError
            found[name] = float(value)
        except ValueError:
            accepted = f"name=share of {', '.join(known)}, each once"
            raise ConfigError(explain(f"budget {part.strip()!r}", accepted, "Write it as ttft=0.5,kv=0.25")) from None
    return Budget(**found)


@dataclass(frozen=True)
class Costs:
    """What was used as a share of what the bare model uses; `n_eq`, `flops` and `kv` as in `Budget`."""

    n_eq: float
    flops: float
    kv: float

    def over(self, budget: Budget) -> dict[str, float]:
        """By how much each limit is missed, by name; 0 or less where it is met."""
        # rounding of counts to whole tokens is no reason to refuse
        return {name: getattr(self, name) - limit - 1e-6 for name, limit in budget.limits.items()}

    def to_dict(self) -> dict[str, float]:
        """Rounded, for files."""
        return {name: round(value, 5) for name, value in asdict(self).items()}


class Probe:
    """Runs one question with a candidate and reads its costs off the handle; the answer is not looked at.

    inputs: of one question; with_cache: the cache is compressed as well, which takes a decode step more
    """

    def __init__(self, subject: Subject, inputs: Any, *, with_cache: bool) -> None:
        self._subject, self._inputs, self._with_cache = subject, inputs, with_cache

    def __call__(self, plugins: tuple[Plugin, ...]) -> Costs:
        """Costs of a candidate on this question."""
        steps = 2 if self._with_cache else 1
        with attach(self._subject.model, *plugins) as handle, torch.inference_mode():
            self._subject.model.generate(**self._inputs, max_new_tokens=steps, min_new_tokens=steps, do_sample=False)
            return costs_of(handle)

    def sizes(self) -> tuple[int, int, int]:
        """Decoder layers, visual tokens and tokens of the question, bare."""
        with attach(self._subject.model, uniform_grid(keep_ratio=1.0)) as handle, torch.inference_mode():
            self._subject.model.generate(**self._inputs, max_new_tokens=1, do_sample=False)
            report = handle.stats().last
        assert report is not None  # a question without a picture is refused before
        return len(report.visual_per_layer), round(report.visual_tokens), report.length

    def tokens_at(self, flops: float) -> float:
        """Largest share of the visual tokens whose decoder FLOPs are at most this share of the bare model's.

        Tokens that go at once, before the language model, are the cheapest way to have so many on average.

        Raises:
            ConfigError: text alone costs more.
        """
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            met = self((uniform_grid(keep_ratio=middle),)).flops <= flops
            low, high = (middle, high) if met else (low, middle)
        if low == 0.0:
            raise ConfigError(explain(f"flops={flops:g}", "more than the text alone costs", "Give a larger budget"))
        return low


def costs_of(handle: Handle) -> Costs:
    """Costs of the last prompt that a handle saw, and of the cache behind it."""
    found = prompt_costs(handle.stats())
    return Costs(found["n_eq"] / max(found["visual_tokens"], 1e-9), found["flops_ratio"], found["kv_bytes_ratio"])
