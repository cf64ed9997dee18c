"""Prompts that end early, so that the first token of an answer comes out of a compressed cache as well.

With plain `generate` a cache is compressed when the prompt is over, and the prompt itself has said the first token of
the answer by then: an answer of one token would never notice. So a prompt is cut in two, and what is behind the cut is
fed token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vlm_eff.core.errors import InputError, explain
from vlm_eff.eval.subject import Row, Subject
from vlm_eff.models.adapter import adapter_for

Ends = Literal["seen", "unseen"]


@dataclass(frozen=True)
class CutPrompts:
    """A batch of prompts in two parts.

    inputs: of the model, up to the cut; rest: [B, t] the tokens behind it; t is 0 where nothing is cut
    """

    inputs: dict[str, Any]
    rest: Tensor


def cut_prompts(subject: Subject, rows: Sequence[Row], ends: Ends | None) -> CutPrompts:
    """Write prompts in the words of the model's chat template, and cut them.

    ends: "seen" behind the question: the words that ask for the answer are cut off; "unseen" behind the last picture
          or frame, so that the question is cut off too; None cuts nothing

    Raises:
        InputError: what `Subject.batch` refuses, or rows with different numbers of tokens behind their pictures.
    """
    inputs = dict(subject.batch(rows))
    ids = inputs["input_ids"]
    if ends is None:
        return CutPrompts(inputs, ids[:, ids.shape[1] :])
    count = _asking_tokens(subject, ids) if ends == "seen" else _tokens_behind_pictures(subject, ids)
    return CutPrompts({name: _shorter(value, ids, count) for name, value in inputs.items()}, ids[:, -count:])


def ends_of(subject: Subject, ids: Tensor) -> Tensor:
    """The tokens that end answers, on the device of `ids`.  [n]"""
    end = subject.model.generation_config.eos_token_id
    return torch.tensor([] if end is None else end, device=ids.device, dtype=ids.dtype).reshape(-1)


def _asking_tokens(subject: Subject, ids: Tensor) -> int:
    """How many tokens at the end of every prompt ask for the answer; 1 where the template does not tell."""
    message = [{"role": "user", "content": [{"type": "text", "text": "what?"}]}]
    processor = subject.processor
    plain, asking = (
        processor.apply_chat_template(message, tokenize=False, add_generation_prompt=wanted) for wanted in (False, True)
    )
    if not asking.startswith(plain):
        return 1
    written = processor.tokenizer(asking[len(plain) :], add_special_tokens=False).input_ids
    count = len(written)
    if not 0 < count < ids.shape[1] or not bool((ids[:, -count:] == torch.tensor(written, device=ids.device)).all()):
        return 1
    # where `generate` feeds the rest, a token that ends answers would end them before they began
    ended = torch.isin(ids[0, -count:], ends_of(subject, ids)).nonzero()
    return max(1, count - 1 - int(ended.max())) if len(ended) else count


def _tokens_behind_pictures(subject: Subject, ids: Tensor) -> int:
    """How many tokens come behind the last picture or frame of every prompt."""
    adapter = adapter_for(subject.model)
    visual = torch.isin(ids, torch.tensor((*adapter.tokens, *adapter.video_tokens), device=ids.device))
    # 0 in a row without pictures too
    behind = set(visual.flip(1).int().argmax(1).tolist())
    if len(behind) > 1 or 0 in behind:
        raise InputError(
            explain(
                f"prompts with {sorted(behind)} tokens behind their last picture",
                "prompts that end with a question behind their pictures, all of one length where they share a batch",
                "Put questions of one length into a batch",
            )
        )
    return int(behind.pop())


def _shorter(value: Any, ids: Tensor, count: int) -> Any:
    """What goes along with every token of the prompt loses its end as well."""
    return value[:, :-count] if isinstance(value, Tensor) and value.shape == ids.shape else value
