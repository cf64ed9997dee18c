"""When new tokens are there: a stopwatch that stands beside `generate` and never stops it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.eval.subject import Subject

Clock = Callable[[], float]


@dataclass(frozen=True)
class Timed:
    """One run, seconds.

    first: to the first new token on the host; last: to the last; gaps: between tokens where each was waited for
    tokens: new tokens a row; output: what `generate` returned, the cache among it
    """

    first: float
    last: float
    tokens: int
    gaps: tuple[float, ...]
    output: Any

    @property
    def per_token(self) -> float | None:
        """Seconds of each token behind the first; None when there is none."""
        return (self.last - self.first) / (self.tokens - 1) if self.tokens > 1 else None


class Watch:
    """Reads the first new token, and every one with `each`; reading waits for the device and for nothing else."""

    def __init__(self, clock: Clock, *, each: bool = False) -> None:
        self._clock = clock
        self._each = each
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self._each or not self.times:
            input_ids[:, -1].tolist()
            self.times.append(self._clock())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def run_timed(
    subject: Subject, inputs: Any, new_tokens: int, *, each: bool = False, clock: Clock = time.perf_counter
) -> Timed:
    """Generate exactly `new_tokens` tokens a row, greedily, and note when they come.

    each: wait for every token, which costs time on a GPU; only for gaps between tokens

    Raises:
        ConfigError: less than one token.
    """
    if new_tokens < 1:
        raise ConfigError(explain(f"new_tokens={new_tokens}", "at least 1", "Ask for a token"))
    watch = Watch(clock, each=each)
    with torch.inference_mode():
        synchronise(subject.device)
        started = clock()
        output = subject.model.generate(
            **inputs,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            return_dict_in_generate=True,
            stopping_criteria=StoppingCriteriaList([watch]),
        )
        output.sequences[:, -1].tolist()
        ended = clock()
    made = output.sequences.shape[1] - inputs["input_ids"].shape[1]
    times = [moment - started for moment in watch.times]
    # with one token the moment it is read and the end are the same thing, seen twice
    last = times[0] if made == 1 else ended - started
    gaps = tuple(after - before for before, after in pairwise(times)) if each else ()
    return Timed(times[0], last, made, gaps, output)


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
