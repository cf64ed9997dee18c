"""What the demo does: every question, bare and with every method at every budget, and accuracy over many questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from PIL import Image

from vlm_eff.core.handle import Handle
from vlm_eff.demo.tour.pictures import Question
from vlm_eff.eval.budgets import Setting
from vlm_eff.eval.compare import Comparison, compare
from vlm_eff.eval.overlay import overlay
from vlm_eff.eval.subject import Subject
from vlm_eff.models.attach import attach
from vlm_eff.reference.evaluate import Sample, answer_questions

_ANSWER_TOKENS = 4


@dataclass(frozen=True)
class Asked:
    """One question with its comparison and, for every plugin, the picture of what it kept."""

    question: Question
    comparison: Comparison
    kept: dict[str, Image.Image]


@dataclass(frozen=True)
class Score:
    """Right answers of one setting over one set of questions; `label` is "bare" or that of the setting."""

    task: str
    label: str
    right: int
    same_as_bare: int
    questions: int


def ask(subject: Subject, question: Question, settings: Sequence[Setting], pairs: int) -> Asked:
    """Ask one question in all settings; the overlay shows what is left at the last layer."""
    kept: dict[str, Image.Image] = {}

    def watch(label: str, handle: Handle) -> None:
        report = handle.stats().last
        assert report is not None  # there is a picture
        tokens = handle.visual(len(report.visual_per_layer) - 1)[0]
        kept[label] = overlay(subject.seen(question.image), tokens, side=240)

    found = compare(
        subject,
        [question.image],
        question.text,
        {setting.label: setting.plugin for setting in settings},
        max_new_tokens=_ANSWER_TOKENS,
        pairs=pairs,
        warmup=2,
        watch=watch,
    )
    return Asked(question, found, kept)


def score(
    subject: Subject, task: str, samples: Sequence[Sample], settings: Sequence[Setting], advance: Callable[[], object]
) -> list[Score]:
    """Exact matches over the samples of `task`, bare and in each setting; `advance` is called after each."""
    made: list[Score] = []
    bare: list[str] = []
    for setting in (None, *settings):
        attached: AbstractContextManager[object] = attach(subject.model, setting.plugin) if setting else nullcontext()
        with attached:
            answers = answer_questions(subject.model, subject.processor, samples)
        bare = bare or answers
        right = sum(answer == sample.question.answer for answer, sample in zip(answers, samples, strict=True))
        same = sum(one == other for one, other in zip(answers, bare, strict=True))
        made.append(Score(task, setting.label if setting else "bare", right, same, len(samples)))
        advance()
    return made


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """`count` samples at even distances."""
    return [samples[place * len(samples) // count] for place in range(min(count, len(samples)))]
