"""How sure a model with plugins stays of what the bare one said: it is led along that answer, token by token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from vlm_eff.eval.subject import Subject

# of an answer, so that a long one does not cost as much as everything else
LED_TOKENS = 16


class Led(LogitsProcessor):  # type: ignore[misc]
    """Makes a model say given tokens, and notes what it would have thought of them.

    tokens: [B, n]; what follows them is the model's own
    """

    def __init__(self, tokens: Tensor) -> None:
        self._tokens, self._step = tokens, 0
        self.logs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step, self._step = self._step, self._step + 1
        if step >= self._tokens.shape[1]:
            return scores
        wanted = self._tokens[:, step, None]
        self.logs.append(scores.float().log_softmax(-1).gather(1, wanted)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(1, wanted, 0.0)


@torch.inference_mode()
def loyalty(subject: Subject, inputs: Any, said: Tensor) -> float:
    """Probability that the model, with what is attached to it now, gives to an answer [1, n]; from 0 to 1.

    The geometric mean over the first 16 tokens of the answer, the one that ends it included where it is among them.
    """
    led = Led(said[:, :LED_TOKENS])
    subject.model.generate(
        **inputs,
        max_new_tokens=min(said.shape[1], LED_TOKENS),
        do_sample=False,
        logits_processor=LogitsProcessorList([led]),
    )
    return float(torch.stack(led.logs, 1).mean().exp())
