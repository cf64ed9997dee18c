"""A method's decode steps told a second time: the bare eager model on a full cache with what is gone hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.contracts import kit, kv_kit
from tests.kv_oracle import Record, recording, replaying
from tests.tiny import TinyInputs, tiny_inputs
from vlm_eff import attach
from vlm_eff.core.plugin import Plugin


@dataclass(frozen=True)
class Told:
    """What happened in each call.

    record:    what the method stored after each call
    attention: call -> layer -> [B, H, Q, total] float64 weights of the same calls on the full cache
    """

    record: Record
    attention: list[list[Tensor]]
    inputs: TinyInputs
    heads: int

    @property
    def length(self) -> int:
        """Columns of the prompt."""
        return int(self.inputs["input_ids"].shape[1])

    def stored(self, call: int, layer: int, row: int, head: int) -> list[int]:
        """Positions stored after a call; the prompt is stored whole until the first step, its padding left out here."""
        return self.rows(0, row) if call == 0 else kv_kit.kept(self.record[call][layer], row, head)

    def rows(self, call: int, row: int) -> list[int]:
        """Positions of the queries of a call that are no padding."""
        return kv_kit.real_places(self.inputs, row) if call == 0 else [self.length + call - 1]

    def weights(self, call: int, layer: int, row: int, head: int, query: int) -> Tensor:
        """What one query gave every column, one line for each query head of a group [n, total]."""
        seat = query if call == 0 else 0
        return self.attention[call][layer][row].chunk(self.heads, 0)[head][:, seat]


def told(family: str, plugin: Plugin, steps: int, rows: tuple[int, ...] = (1, 2)) -> Told:
    """Generate with the plugin, then once more without it, and keep what both said."""
    model, inputs = kit.model_of(family, "eager"), tiny_inputs(family, rows)
    with attach(model, plugin) as handle, recording(model, handle) as record:
        tokens, _ = kit.generate(model, inputs, steps)
    with torch.no_grad(), replaying(model, record):
        again: Any = model.generate(
            **inputs, max_new_tokens=steps, min_new_tokens=steps, do_sample=False, output_attentions=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    assert torch.equal(again.sequences[:, inputs["input_ids"].shape[1] :], tokens)
    attention = [[layer.double() for layer in call] for call in again.attentions]
    return Told(record, attention, inputs, model.config.get_text_config().num_key_value_heads)


def chosen(scores: dict[int, float], alive: list[int], count: int, recent: int) -> list[int]:
    """The newest `recent` of the places alive and the best of the others, `count` in all; ties to the lower place."""
    last = alive[len(alive) - recent :]
    middle = alive[: len(alive) - recent]
    best = sorted(middle, key=lambda place: (-scores[place], place))[: count - recent]
    return sorted([*best, *last])
