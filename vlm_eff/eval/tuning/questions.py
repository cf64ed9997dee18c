"""Questions that a candidate is judged by: how sure it stays of what the bare model answered.

Every item is asked of the bare model once, greedily. A candidate is then led along those answers token by token, and
what counts is the probability that it gives them: a smooth measure of loyalty, where accuracy over a hundred items
moves in steps of one per cent.

Where the cache is tuned, all arms are asked with prompts that end before the words that ask for the answer, which are
fed afterwards one by one: see `cut_prompts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from vlm_eff.core.errors import InputError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.cut_prompts import CutPrompts, Ends, cut_prompts, ends_of
from vlm_eff.eval.loyalty import LED_TOKENS, Led
from vlm_eff.eval.metrics import METRICS
from vlm_eff.eval.runs.asking import show, shows
from vlm_eff.eval.runs.plan import batches
from vlm_eff.eval.subject import Row, Subject
from vlm_eff.eval.tasks.item import Item, Task
from vlm_eff.eval.tuning.budget import Costs, costs_of
from vlm_eff.models.attach import attach


@dataclass(frozen=True)
class _Batch:
    """Questions made ready.

    said: [B, n] the bare answers with the token that ends them; real: [B, n] what of it is no padding
    worth: [B] scores of the bare answers
    """

    items: tuple[Item, ...]
    prompts: CutPrompts
    said: Tensor
    real: Tensor
    worth: Tensor


@dataclass(frozen=True)
class Answered:
    """Answers to all items: text and score by item id, in the items' order, and the mean costs over batches."""

    texts: dict[str, str]
    scores: dict[str, float]
    costs: Costs | None

    @property
    def accuracy(self) -> float:
        """Mean score."""
        return sum(self.scores.values()) / len(self.scores)


class Questions:
    """Items with the bare model's answers, to be asked of one candidate after another.

    cut: prompts end early, see the module

    Raises:
        InputError: an item shows nothing, or its media cannot be opened.
    """

    def __init__(self, subject: Subject, task: Task, items: Sequence[Item], batch_size: int, *, cut: bool) -> None:
        self._subject, self._task = subject, task
        asked = batches(items, batch_size)
        ends: Ends | None = "seen" if cut else None
        prompts = [cut_prompts(subject, [self._row(item) for item in batch], ends) for batch in asked]
        self._batches = [
            _Batch(batch, prompt, *self._bare(batch, prompt)) for batch, prompt in zip(asked, prompts, strict=True)
        ]
        self.bare = self.answer(())

    def first(self) -> Any:
        """Inputs of one question of middle length, for costs."""
        batch = self._batches[len(self._batches) // 2]
        return self._subject.batch([self._row(batch.items[len(batch.items) // 2])])

    @torch.inference_mode()
    def loyalty(self, plugins: Sequence[Plugin]) -> float:
        """Probability that a candidate gives to the bare model's answers, from 0 to 1.

        Of each answer the geometric mean over its tokens, the end included; of the answers the mean, weighted by their
        scores: what the bare model got wrong need not be kept. Where all are wrong, all count alike.
        """
        kept, worth = [], []
        with self._attached(plugins):
            for batch in self._batches:
                rest = batch.prompts.rest
                tail, led = rest.shape[1], Led(torch.cat((rest, batch.said), 1))
                self._generate(batch.prompts, led, tail + batch.said.shape[1])
                logs = torch.zeros_like(batch.said, dtype=torch.float32)
                # generation ends with the last answer, and padding behind an end counts for nothing
                found = torch.stack(led.logs[tail:], 1)
                logs[:, : found.shape[1]] = found
                kept.append((logs.where(batch.real, 0.0).sum(1) / batch.real.sum(1)).exp())
                worth.append(batch.worth)
        weights = torch.cat(worth)
        weights = weights if bool(weights.any()) else torch.ones_like(weights)
        return float((torch.cat(kept) * weights).sum() / weights.sum())

    @torch.inference_mode()
    def answer(self, plugins: Sequence[Plugin]) -> Answered:
        """Greedy answers with a candidate, or bare, in the way the candidates are asked."""
        texts, scores, costs = dict[str, str](), dict[str, float](), []
        with self._attached(plugins) as handle:
            for batch in self._batches:
                if handle is not None:
                    handle.reset()
                rest = batch.prompts.rest
                tail = rest.shape[1]
                new = self._generate(batch.prompts, Led(rest), tail + self._task.max_new_tokens)
                said = self._subject.processor.batch_decode(new[:, tail:], skip_special_tokens=True)
                for item, text in zip(batch.items, said, strict=True):
                    texts[item.id] = text.strip()
                    scores[item.id] = self._score(item, text)
                if handle is not None:
                    costs.append((len(batch.items), costs_of(handle)))
        return Answered(texts, scores, _mean(costs) if costs else None)

    def _row(self, item: Item) -> Row:
        shown = show(item, self._task.sampling, shows(self._subject, "auto"))
        if shown.row is None or not item.media:
            got = f"item {item.id} ({shown.error or 'it shows nothing'})"
            raise InputError(explain(got, "items with pictures or videos that open", "Leave it out of the data"))
        return shown.row

    @torch.inference_mode()
    def _bare(self, batch: Sequence[Item], prompts: CutPrompts) -> tuple[Tensor, Tensor, Tensor]:
        longest, tail = min(self._task.max_new_tokens, LED_TOKENS), prompts.rest.shape[1]
        said = self._generate(prompts, Led(prompts.rest), tail + longest)[:, tail:]
        ended = torch.isin(said, ends_of(self._subject, said))
        # up to the first end, that one included
        real = (ended.cumsum(1) - ended.int()) == 0
        texts = self._subject.processor.batch_decode(said, skip_special_tokens=True)
        worth = [self._score(item, text) for text, item in zip(texts, batch, strict=True)]
        return said, real, torch.tensor(worth, device=said.device)

    def _score(self, item: Item, text: str) -> float:
        return METRICS.get(self._task.metric).score(text.strip(), item.gold, item_id=item.id).value

    def _generate(self, prompts: CutPrompts, led: Led, count: int) -> Tensor:
        output: Tensor = self._subject.model.generate(
            **prompts.inputs, max_new_tokens=count, do_sample=False, logits_processor=LogitsProcessorList([led])
        )
        return output[:, prompts.inputs["input_ids"].shape[1] :]

    def _attached(self, plugins: Sequence[Plugin]) -> Any:
        return attach(self._subject.model, *plugins) if plugins else nullcontext()


def _mean(costs: Sequence[tuple[int, Costs]]) -> Costs:
    count = sum(items for items, _ in costs)

    def mean(name: str) -> float:
        return sum(items * float(getattr(one, name)) for items, one in costs) / count

    return Costs(mean("n_eq"), mean("flops"), mean("kv"))
