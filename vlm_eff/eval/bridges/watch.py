"""A model that another harness runs: plugins put on it, its `generate` counted and timed, its failures remembered.

Harnesses catch what a model raises and score an empty answer, so that a broken plugin looks like a bad one. The watch
counts what was raised before the harness sees it, and `check` ends the run.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteriaList

from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.core.files import write_file
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.report import PrefillReport, Stats
from vlm_eff.eval.costs.prompt import prompt_costs
from vlm_eff.eval.loading import first_line
from vlm_eff.models.attach import attach

_LOG = logging.getLogger("vlm_eff")
# modules that run copies or shards of a model: hooks of an instance are lost in them, or see a part of it
_SHARED_OUT = ("DataParallel", "FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine", "InferenceEngine")


class RunFailed(SystemExit):
    """A run under another harness that must not pass for a result.

    No `Exception`: lmms-eval and VLMEvalKit catch those, print them, and leave with exit code 0. As it is, the process
    ends with exit code 1 and the message on stderr; who drives a harness from Python catches it by name.
    """


class Watch:
    """Plugins on `module`, and what its `generate` did since `reset`; `close` leaves the module as it was.

    calls:    one dict a call that returned: new_tokens, ttft_ms, tpot_ms and, with plugins, visual_tokens, kept_tokens
              (left at the last layer), n_eq, n_eq_asked, flops_ratio, kv_bytes, kv_bytes_ratio; means over rows
    failures: what was raised, a line each; idle: calls that no plugin saw
    tokens:   new tokens of all rows, with those that fill up shorter answers; seconds: inside `generate`
    """

    def __init__(self, module: Any, plugins: Iterable[Plugin], *, on_error: str, record: Path | None = None) -> None:
        chosen = tuple(plugins)
        self.handle = attach(module, *chosen) if chosen else None
        self._module, self._on_error, self._record = module, on_error, record
        self._generate = module.generate
        self._had_own = "generate" in vars(module)
        module.generate = self._watched
        self._written: list[dict[str, Any]] = []
        self.reset()

    def reset(self) -> None:
        """Forget calls and failures."""
        self.calls: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.idle = self.tokens = 0
        self.seconds = 0.0
        if self.handle is not None:
            self.handle.reset()

    def close(self) -> None:
        """Take everything off; may be called again."""
        if vars(self._module).get("generate") == self._watched:
            del self._module.generate
            if self._had_own:
                self._module.generate = self._generate
        if self.handle is not None:
            self.handle.detach()

    @contextmanager
    def judged(self, requests: int, what: str) -> Iterator[None]:
        """Let the harness ask the model inside; behind it, `check`, also where an exception came through.

        requests: for which `generate` has to be called; 0 where it need not be
        """
        before = len(self.calls) + len(self.failures)
        try:
            yield
        except Exception:
            self.check(what)
            raise
        called = len(self.calls) + len(self.failures) > before
        self.check(what, unasked=0 if called else requests)

    def check(self, what: str, unasked: int = 0) -> None:
        """Raise `RunFailed` if the model raised, was never called, or ran without its plugins; with "warn", say so."""
        found = []
        if self.failures:
            found.append(f"{len(self.failures)} of {len(self.calls) + len(self.failures)} calls raised")
        if unasked:
            found.append(f"{unasked} requests were answered without a call of generate")
        if self.idle:
            found.append(f"{self.idle} calls ran past the plugins")
        if not found:
            return
        first = f"; the first: {self.failures[0]}" if self.failures else ""
        text = f"vlm_eff: {what} failed: {', '.join(found)}{first}"
        if self._on_error == "raise":
            raise RunFailed(f"{text}. Scores would count these as wrong answers; on_error=warn lets them.")
        _LOG.warning("%s. They count as wrong answers.", text)

    def note_passes(self) -> None:
        """Take what the handle saw outside `generate` for calls, as in tasks that compare likelihoods."""
        if self.handle is None or self.calls:
            return
        stats = self.handle.stats()
        self.calls = [_numbers(stats, report) for report in stats.prefills if any(report.visual)]

    def means(self) -> dict[str, float]:
        """Means over the calls by name, of those that have it, and how many calls raised."""
        names = sorted({name for call in self.calls for name in call})
        made = {name: [call[name] for call in self.calls if name in call] for name in names}
        return {name: sum(values) / len(values) for name, values in made.items()} | {
            "failed_calls": float(len(self.failures))
        }

    def write(self, what: str) -> None:
        """Add the calls to the record file, in the order in which the harness made them."""
        if self._record is not None:
            self._written.append({"of": what, "calls": self.calls, "failures": self.failures})
            write_file(self._record, json.dumps(self._written, indent=1) + "\n")

    def _watched(self, *args: Any, stopping_criteria: Any = None, **kwargs: Any) -> Any:
        if self.handle is not None:
            self.handle.reset()
        clock = _FirstToken()
        try:
            output = self._generate(
                *args, stopping_criteria=StoppingCriteriaList([*(stopping_criteria or ()), clock]), **kwargs
            )
        except Exception as error:
            self.failures.append(f"{type(error).__name__}: {first_line(error)}")
            raise
        ended = time.perf_counter()
        call = clock.costs(ended)
        self.seconds += ended - clock.started
        self.tokens += call["new_tokens"] * int(getattr(output, "sequences", output).shape[0])
        if self.handle is not None:
            stats = self.handle.stats()
            self.idle += stats.calls == 0
            call |= _numbers(stats, stats.last)
        self.calls.append(call)
        return output


class _FirstToken:
    """A stopping criterion that stops nothing, and notes when the first new token was on the host."""

    def __init__(self) -> None:
        self.started, self._first, self._tokens = time.perf_counter(), 0.0, 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> Any:
        if not self._tokens:
            input_ids[0, -1].item()
            self._first = time.perf_counter()
        self._tokens += 1
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def costs(self, ended: float) -> dict[str, Any]:
        """Milliseconds from the call to the first token, and for each one after it."""
        if not self._tokens:
            return {"new_tokens": 0}
        made: dict[str, Any] = {"new_tokens": self._tokens, "ttft_ms": (self._first - self.started) * 1e3}
        if self._tokens > 1:
            made["tpot_ms"] = (ended - self._first) * 1e3 / (self._tokens - 1)
        return made


def _numbers(stats: Stats, report: PrefillReport | None) -> dict[str, Any]:
    """What the harness can average."""
    return {name: value for name, value in prompt_costs(stats, report).items() if not isinstance(value, list)}


def find_module(backend: Any, name: str) -> Any:
    """The torch module that a harness's model runs: its `.model`, else its `._model`, unwrapped.

    Raises:
        CapabilityError: there is none in this process, or it is copied or cut up over devices while it runs.
    """
    found = [getattr(backend, place, None) for place in ("model", "_model")]
    for module in found:
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if kinds.intersection(_SHARED_OUT):
            raise CapabilityError(
                explain(
                    f"the model of {name} is wrapped in {type(module).__name__}",
                    "a model that runs whole in each process, or is spread by device_map",
                    "Start one process a GPU, each with the whole model, or pass device_map=auto",
                )
            )
    for module in found:
        if isinstance(module, torch.nn.parallel.DistributedDataParallel):
            module = module.module
        if isinstance(module, torch.nn.Module):
            return module
    raise CapabilityError(
        explain(
            f"{name} has no torch module at .model or ._model",
            "a base that runs its model in this process with transformers",
            "Choose another base: plugins cannot be put on an API, on vLLM or on SGLang",
        )
    )
