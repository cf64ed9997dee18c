"""Answers that are heard while they are made, and that may be stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from vlm_eff.core.errors import Stopped, explain
from vlm_eff.eval.subject import Subject

Hear = Callable[[str], None]
# of one token in so many; reading a whole long answer at every token costs more than making it
_READ_EVERY = 8


@dataclass(frozen=True)
class Spoken:
    """A greedy answer: its text, how many new tokens it took, the one that ends it included, and these [1, n]."""

    text: str
    tokens: int
    ids: Tensor = field(repr=False)


class _Listener:
    """Stands beside `generate`: passes on what was said so far, and ends it when somebody wants that."""

    def __init__(self, subject: Subject, prompt: int, hear: Hear, stop: threading.Event) -> None:
        self._subject, self._prompt, self._hear, self._stop = subject, prompt, hear, stop

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        made = input_ids.shape[1] - self._prompt
        if made < _READ_EVERY or made % _READ_EVERY == 0:
            self._hear(read(self._subject, input_ids[:, self._prompt :]))
        return torch.full((input_ids.shape[0],), self._stop.is_set(), device=input_ids.device)


def answer_aloud(subject: Subject, inputs: Any, *, max_new_tokens: int, hear: Hear, stop: threading.Event) -> Spoken:
    """The model's greedy answer to one question, passed on while it grows.

    hear: called with the answer so far, from this thread; stop: looked at after every token

    Raises:
        Stopped: `stop` was set.
    """
    if stop.is_set():
        raise stopped()
    prompt = inputs["input_ids"].shape[1]
    listener = _Listener(subject, prompt, hear, stop)
    with torch.inference_mode():
        output = subject.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([listener]),
        )
    if stop.is_set():
        raise stopped()
    text = read(subject, output[:, prompt:])
    hear(text)
    return Spoken(text, output.shape[1] - prompt, output[:, prompt:])


def read(subject: Subject, new: Tensor) -> str:
    """The text of new tokens [1, n]."""
    text: str = subject.processor.batch_decode(new, skip_special_tokens=True)[0]
    return text.strip()


def stopped() -> Stopped:
    """What is raised where somebody stopped the work."""
    return Stopped(explain("the work was stopped", "work that may end by itself", "Start it again if you want it"))
