"""Questions whose answers come out of a compressed cache, the first token too.

A prompt ends early, see `cut_prompts`. "seen": it ends with the question, and the words that ask for the answer are fed
one by one. "unseen": it ends with the picture, and the question is fed one by one as well, so that the cache is
compressed before anybody knows what will be asked.

All methods share one prefill: what they need is observed together, and each compresses copies of what it left.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from vlm_eff.core.cache import CacheSite, Compress
from vlm_eff.core.errors import InputError, explain
from vlm_eff.core.handle import Handle
from vlm_eff.core.plugin import BindContext, Observation, Plugin
from vlm_eff.core.resources import Resource
from vlm_eff.eval.cut_prompts import Ends, cut_prompts, ends_of
from vlm_eff.eval.subject import Row, Subject, open_image
from vlm_eff.models.attach import attach
from vlm_eff.models.kv.meter import copied_cache
from vlm_eff.reference.evaluate import Sample

ANSWER_TOKENS = 4


@dataclass(frozen=True)
class Switch(Plugin):
    """Many policies on one handle, of which one acts at a time; `chosen` holds it, or nothing."""

    policies: tuple[Plugin, ...]
    chosen: list[Plugin] = field(default_factory=list)

    @property
    def name(self) -> str:
        return "switch"

    @property
    def sites(self) -> tuple[CacheSite, ...]:
        return (CacheSite("prompt"), CacheSite("step"))

    @property
    def needs(self) -> tuple[Observation, ...]:
        return tuple(dict.fromkeys(need for policy in self.policies for need in policy.needs))

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset()

    def bind(self, context: BindContext) -> Switch:
        return replace(self, policies=tuple(policy.bind(context) for policy in self.policies))

    def at(self, site: CacheSite, view: Any) -> Compress | None:
        for policy in self.chosen:
            if site in policy.sites:
                made = policy.at(site, view)
                return made if isinstance(made, Compress) else None
        return None


@dataclass(frozen=True)
class Asked:
    """A batch of questions of one length: the cache behind what was prefilled, and the tokens that are still to come.

    part: the set of questions it is taken from; places: of the questions in that set
    """

    part: str
    places: tuple[int, ...]
    samples: tuple[Sample, ...]
    cache: Any
    rest: Tensor


@dataclass(frozen=True)
class Answers:
    """How a policy answered, and what it left of the cache.

    accuracy: share of right answers of each set of questions, by family and over "all"
    right: whether each question of a set was answered right, in the order they were given
    bytes_ratio, entries_ratio: of the prompt, compressed / full
    """

    accuracy: dict[str, dict[str, float]]
    right: dict[str, tuple[bool, ...]]
    bytes_ratio: float
    entries_ratio: float


class Questions:
    """Prefilled questions, to be answered by one policy after the other; made by `prefilled`."""

    def __init__(self, subject: Subject, handle: Handle, batches: Sequence[Asked]) -> None:
        self._subject, self._handle, self.batches = subject, handle, batches
        (self._switch,) = (plugin for plugin in handle.plugins if isinstance(plugin, Switch))

    @property
    def policies(self) -> tuple[Plugin, ...]:
        """The policies as they are bound to the model, in the order they were given."""
        return self._switch.policies

    def choose(self, policy: Plugin | None) -> None:
        """Let one of `policies` compress from now on, or none."""
        self._switch.chosen[:] = [] if policy is None else [policy]

    def answer(self, policy: Plugin | None) -> Answers:
        """Let one of `policies` compress, or none, and answer every question."""
        self.choose(policy)
        self._handle.reset()
        hits: defaultdict[str, dict[int, bool]] = defaultdict(dict)
        right: defaultdict[str, Counter[str]] = defaultdict(Counter)
        total: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for batch in self.batches:
            for place, sample, said in zip(batch.places, batch.samples, self.say(batch), strict=True):
                hit = hits[batch.part][place] = said == sample.question.answer
                for name in (sample.question.family, "all"):
                    right[batch.part][name] += hit
                    total[batch.part][name] += 1
        reports = [report for report in self._handle.stats().compressions if report.when == "prompt"]
        sizes = [(one.bytes_after, one.bytes_before, sum(one.after), sum(one.before)) for one in reports]
        kept, full, left, there = (sum(column) for column in zip(*sizes, strict=True)) if sizes else (1, 1, 1, 1)
        accuracy = {
            part: {name: right[part][name] / count[name] for name in sorted(count)} for part, count in total.items()
        }
        in_order = {part: tuple(found[place] for place in sorted(found)) for part, found in hits.items()}
        return Answers(accuracy, in_order, kept / full, left / there)

    @torch.no_grad()
    def say(self, batch: Asked) -> list[str]:
        """Greedy answers of a batch, from a copy of its cache."""
        model, cache = self._subject.model, copied_cache(batch.cache)
        for token in torch.split(batch.rest, 1, 1):
            logits = model(input_ids=token, past_key_values=cache, use_cache=True).logits
        ends = ends_of(self._subject, batch.rest)
        # what is written behind the end of an answer is not read
        filler = int(ends[0]) if len(ends) else 0
        said: list[Tensor] = []
        over = torch.zeros(len(batch.rest), dtype=torch.bool, device=batch.rest.device)
        while True:
            token = logits[:, -1].argmax(-1).where(~over, filler)
            said.append(token)
            over = over | torch.isin(token, ends)
            if len(said) == ANSWER_TOKENS or bool(over.all()):
                break
            logits = model(input_ids=token[:, None], past_key_values=cache, use_cache=True).logits
        text = self._subject.processor.batch_decode(torch.stack(said, 1), skip_special_tokens=True)
        return [one.strip() for one in text]


@contextmanager
def prefilled(
    subject: Subject,
    samples: Mapping[str, Sequence[Sample]],
    policies: Sequence[Plugin],
    ends: Ends,
    batch_size: int = 64,
) -> Iterator[Questions]:
    """Prefill sets of questions once for all policies; inside the block they are answered.

    ends: where the prefill ends, see the module. Questions of one length make a batch, so that nothing is padded.

    Raises:
        InputError: what `cut_prompts` refuses, or pictures that take different numbers of tokens.
    """
    with attach(subject.model, Switch(tuple(policies))) as handle, torch.no_grad():
        batches = [
            _prefill(subject, part, batch, ends)
            for part, questions in samples.items()
            for batch in _batches(subject, questions, batch_size)
        ]
        yield Questions(subject, handle, batches)


def _prefill(subject: Subject, part: str, numbered: Sequence[tuple[int, Sample]], ends: Ends) -> Asked:
    places, samples = zip(*numbered, strict=True)
    images = [open_image(one.image) if isinstance(one.image, Path) else one.image for one in samples]
    rows = [Row((image,), one.question.text) for image, one in zip(images, samples, strict=True)]
    prompts = cut_prompts(subject, rows, ends)
    if not bool(prompts.inputs["attention_mask"].all()):
        accepted = "pictures that take equally many tokens"
        raise InputError(explain("questions of one length with padding", accepted, "Bring the pictures to one size"))
    cache = DynamicCache(config=subject.model.config.get_text_config())
    subject.model(**prompts.inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return Asked(part, places, samples, cache, prompts.rest)


def _batches(subject: Subject, samples: Sequence[Sample], size: int) -> Iterator[Sequence[tuple[int, Sample]]]:
    tokenize = subject.processor.tokenizer
    by_length: defaultdict[int, list[tuple[int, Sample]]] = defaultdict(list)
    for place, sample in enumerate(samples):
        by_length[len(tokenize(sample.question.text).input_ids)].append((place, sample))
    for alike in by_length.values():
        for start in range(0, len(alike), size):
            yield alike[start : start + size]
