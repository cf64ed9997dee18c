"""The tasks that need no folder are asked exactly as the bundled model was evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from vlm_eff.core.errors import ConfigError
from vlm_eff.eval.metrics import METRICS
from vlm_eff.eval.subject import Subject
from vlm_eff.eval.tasks import Picture, Task, load_task
from vlm_eff.eval.tasks.source import SHORT_STYLES
from vlm_eff.reference import load_reference
from vlm_eff.reference.evaluate import Sample, answer_questions, easy_vqa_samples, scene_samples


def picture(source: Path | Image.Image) -> Image.Image:
    return Picture(source).open()


def same_questions(task: Task, samples: Sequence[Sample]) -> None:
    assert len(task.items) == len(samples)
    for item, sample in zip(task.items, samples, strict=True):
        assert item.prompt == sample.question.text and item.gold == {"answer": sample.question.answer}
        assert item.groups == {"family": sample.question.family}
        assert picture(item.media[0].source).tobytes() == picture(sample.image).tobytes()  # type: ignore[union-attr]


def test_they_hold_the_questions_of_the_evaluation() -> None:
    same_questions(load_task("easy-vqa", limit=40), easy_vqa_samples("test", 40))
    task = load_task("scenes", scenes=4)
    same_questions(task, scene_samples("test", 4))
    assert len({item.cluster for item in task.items}) == 4
    assert (
        load_task("scenes", scenes=2, first=2).items == task.items[-len(load_task("scenes", scenes=2, first=2).items) :]
    )
    with pytest.raises(ConfigError, match="scenes=0"):
        load_task("scenes", scenes=0)


def test_the_bundled_model_is_asked_and_answers_as_in_its_evaluation() -> None:
    model, processor = load_reference()
    subject = Subject(model, processor, "reference")
    samples = [*easy_vqa_samples("test", 3), *scene_samples("test", 1)[:5]]
    items = [*load_task("easy-vqa", limit=3).items, *load_task("scenes", limit=5).items]
    expected = [answer_questions(model, processor, [sample])[0] for sample in samples]
    for item, sample, answer in zip(items, samples, expected, strict=True):
        inputs = subject.inputs([picture(sample.image)], item.prompt)
        text = f"user: <image> {sample.question.text} assistant:"
        before = processor(images=[picture(sample.image)], text=[text], return_tensors="pt")
        assert torch.equal(inputs["input_ids"], before["input_ids"])
        assert subject.answer(inputs, max_new_tokens=4) == answer
        score = METRICS.get("exact_match").score(answer, item.gold, item_id=item.id)
        assert score.value == (answer == sample.question.answer)
    # another prompt would be found
    other = subject.inputs([picture(samples[0].image)], SHORT_STYLES["short"].format(question=items[0].prompt))
    assert not torch.equal(
        other["input_ids"], subject.inputs([picture(samples[0].image)], items[0].prompt)["input_ids"]
    )
