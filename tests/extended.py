"""The oracle of register tokens: the bare model at full length with the registers at the END of the sequence.

Written without the library: registers stand behind everything else, and an explicit mask says who sees whom, so nothing
depends on their place. Only for forwards without a cache: every step runs the whole sequence.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.oracle import decoder_layers, explicit_mask


@contextmanager
def with_registers(
    model: PreTrainedModel, registers: Tensor, candidates: Tensor, layer: int, repeats: int = 1
) -> Iterator[None]:
    """While open, rows with `candidates` [B, S] have `registers` [B, R, D] and lose their candidates before `layer`.

    At the end the registers' outputs stand at the places of the last R candidates when these are gone.
    """
    layers = decoder_layers(model)
    plan = _Plan(registers, candidates, layer, repeats)
    hooks = []
    for index, module in enumerate(layers):
        hooks.append(module.register_forward_pre_hook(plan.before(index), with_kwargs=True))
        hooks.append(module.register_forward_hook(plan.after(index, index == len(layers) - 1), prepend=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Plan:
    def __init__(self, registers: Tensor, candidates: Tensor, layer: int, repeats: int) -> None:
        self.registers = registers.repeat_interleave(repeats, 0)
        self.candidates = candidates.repeat_interleave(repeats, 0)
        self.layer = layer
        self.count = registers.shape[1]
        rows = [row.nonzero()[:, 0].tolist() for row in self.candidates]
        self.rows = [index for index, row in enumerate(rows) if row]
        # of each row with images: slots of the last R candidates
        self.carriers = {index: rows[index][-self.count :] for index in self.rows}
        self.aside: Tensor | None = None

    def before(self, index: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            hidden = args[0]
            batch, length = hidden.shape[:2]
            slots = torch.zeros(batch, self.count, dtype=torch.long)
            for row in self.rows:
                slots[row] = torch.tensor(self.carriers[row])
            new = self.registers.to(hidden.dtype) if index == 0 else self.aside
            mask = kwargs.get("attention_mask")
            if mask is None:
                mask = explicit_mask(module.self_attn, torch.arange(length), length, hidden)
            seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
            seen = self._extend(seen.expand(batch, 1, length, length), index, module.self_attn.is_causal)
            if mask.dtype != torch.bool:
                seen = torch.zeros(seen.shape, dtype=mask.dtype).masked_fill(~seen, torch.finfo(mask.dtype).min)
            tables = []
            for table in kwargs["position_embeddings"]:
                table = table.expand(batch, *table.shape[1:])
                tables.append(torch.cat([table, table.gather(1, slots[:, :, None].expand(-1, -1, table.shape[2]))], 1))
            changed = {"attention_mask": seen, "position_embeddings": tuple(tables), "position_ids": None}
            return (torch.cat([hidden, new], 1),), kwargs | changed

        return hook

    def _extend(self, base: Tensor, index: int, causal: bool) -> Tensor:
        batch, _, length, _ = base.shape
        seen = torch.zeros(batch, 1, length + self.count, length + self.count, dtype=torch.bool)
        seen[:, :, :length, :length] = base
        for row in range(batch):
            if row not in self.rows:
                # registers of rows without images see themselves, so that nothing becomes undefined
                seen[row, 0, length:, length:] = torch.eye(self.count, dtype=torch.bool)
                continue
            carriers = self.carriers[row]
            last = carriers[-1]
            for number, carrier in enumerate(carriers):
                column, queries = length + number, torch.arange(length)
                seen[row, 0, :length, column] = base[row, 0, :, carrier] & ((queries > last) | (not causal))
                seen[row, 0, column, :length] = base[row, 0, last]
                for other, place in enumerate(carriers):
                    seen[row, 0, column, length + other] = base[row, 0, last, place] & (other <= number or not causal)
            if index >= self.layer:
                gone = torch.nn.functional.pad(self.candidates[row], (0, length - self.candidates.shape[1]))
                own = torch.eye(length, dtype=torch.bool)
                seen[row, 0, :length, :length] &= ~gone[None] | own
                seen[row, 0, length:, :length] &= ~gone[None]
        return seen

    def after(self, index: int, last: bool) -> Any:
        def hook(module: Any, args: Any, output: Tensor) -> Tensor:
            length = output.shape[1] - self.count
            self.aside, output = output[:, length:], output[:, :length].clone()
            if last and self.layer <= index:
                for row in self.rows:
                    output[row, self.carriers[row]] = self.aside[row]
            return output

        return hook
