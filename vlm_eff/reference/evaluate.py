"""Measure a reference model: `python -m vlm_eff.reference.evaluate --output record.json`.

Every question is asked alone, by plain batched greedy `generate`; an answer counts only when it matches exactly.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from . import reference_folder
from .easy_vqa import family_of, load_easy_vqa
from .loading import load_folder
from .machine import describe_device, package_versions
from .scenes import Question, make_scene, questions, render

_ANSWER_TOKENS = 4
_BASELINE_SCENES = 2000


@dataclass(frozen=True)
class Sample:
    """One question about one picture (a picture or the path of one)."""

    image: Image.Image | Path
    question: Question


def scene_samples(split: str, scenes: int, first_seed: int = 0, seed: int = 0) -> list[Sample]:
    """Return one question of every family that a scene allows, for a number of scenes of a split."""
    samples = []
    for number in range(first_seed, first_seed + scenes):
        scene = make_scene(number, split)
        one_each = {question.family: question for question in questions(scene, seed)}
        image = render(scene)
        samples += [Sample(image, one_each[family]) for family in sorted(one_each)]
    return samples


def easy_vqa_samples(split: str = "test", limit: int | None = None) -> list[Sample]:
    """Return the questions of an easy-VQA split, or its first `limit`."""
    rows = load_easy_vqa(split)[:limit]
    return [Sample(path, Question(text, answer, family_of(answer))) for path, text, answer in rows]


def evaluate_reference(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    samples: Sequence[Sample],
    batch_size: int = 64,
) -> dict[str, float]:
    """Return the share of right answers by question family, and over all questions under "all".

    Greedy `generate` on batches of single questions, exact match. Plugins attached to the model stay in force.
    """
    right, total = Counter(), Counter()
    # equal lengths side by side need little padding
    order = sorted(samples, key=lambda sample: len(sample.question.text.split()))
    for batch in _batches(order, batch_size):
        answers = answer_questions(model, processor, batch)
        for sample, answer in zip(batch, answers, strict=True):
            hit = answer == sample.question.answer
            for name in (sample.question.family, "all"):
                right[name] += hit
                total[name] += 1
    return {name: right[name] / total[name] for name in sorted(total)}


def answer_questions(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, samples: Sequence[Sample]
) -> list[str]:
    """Return the model's answers, by greedy generation in one batch."""
    prompts = [_prompt(processor, sample.question.text) for sample in samples]
    images = [_picture(sample.image) for sample in samples]
    inputs = processor(images=images, text=prompts, padding=True, return_tensors="pt").to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=_ANSWER_TOKENS, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


def family_counts(samples: Sequence[Sample]) -> dict[str, int]:
    """Return the number of questions of each family, and of all."""
    counts = Counter(sample.question.family for sample in samples)
    return {**{name: counts[name] for name in sorted(counts)}, "all": len(samples)}


def majority_baseline(training: Sequence[Question], samples: Sequence[Sample]) -> dict[str, float]:
    """Return the share of right answers of always giving the commonest training answer of each family."""
    answers: dict[str, Counter] = defaultdict(Counter)
    for question in training:
        answers[question.family][question.answer] += 1
    best = {family: counts.most_common(1)[0][0] for family, counts in answers.items()}
    right, total = Counter(), Counter()
    for sample in samples:
        for name in (sample.question.family, "all"):
            right[name] += sample.question.answer == best[sample.question.family]
            total[name] += 1
    return {name: right[name] / total[name] for name in sorted(total)}


def _prompt(processor: LlavaProcessor, text: str) -> str:
    """Return one question behind one picture, in the words of the model's chat template."""
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def _batches(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def _picture(image: Image.Image | Path) -> Image.Image:
    if isinstance(image, Path):
        with Image.open(image) as picture:
            return picture.convert("RGB")
    return image


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def evaluated(model, processor, samples: Sequence[Sample], training: Sequence[Question], batch_size: int) -> dict:
    """Return accuracy, baseline and counts of one set of questions."""
    started = time.monotonic()
    accuracy = evaluate_reference(model, processor, samples, batch_size)
    return {
        "accuracy": _rounded(accuracy),
        "majority_baseline": _rounded(majority_baseline(training, samples)),
        "count": family_counts(samples),
        "seconds": round(time.monotonic() - started, 1),
    }


def easy_vqa_record(model, processor, limit: int | None, batch_size: int) -> dict:
    """Return what a model reaches on easy-VQA's test split."""
    samples = easy_vqa_samples("test", limit)
    training = [Question(text, answer, family_of(answer)) for _, text, answer in load_easy_vqa("train")]
    part = evaluated(model, processor, samples, training, batch_size)
    named = [name for name in part["count"] if name not in ("all", "easy_vqa_yes_no")]
    hits = sum(part["accuracy"][name] * part["count"][name] for name in named)
    part["non_binary_accuracy"] = round(hits / max(1, sum(part["count"][name] for name in named)), 4)
    part["always_yes_baseline"] = round(sum(s.question.answer == "yes" for s in samples) / len(samples), 4)
    part["split"] = "test, all questions" if limit is None else f"test, first {limit} questions"
    return part


def scenes_record(model, processor, scenes: int, batch_size: int) -> dict:
    """Return what a model reaches on held-out scenes."""
    part = evaluated(model, processor, scene_samples("test", scenes), scenes_training(), batch_size)
    part["split"] = f"test, scenes 0 to {scenes - 1}, one question of each family that a scene allows"
    return part


def scenes_training() -> list[Question]:
    """Return questions of training scenes, which the majority baseline learns from."""
    return [question for seed in range(_BASELINE_SCENES) for question in questions(make_scene(seed, "train"), 0)]


def conditions(model, batch_size: int) -> dict:
    """Return how and with what a model is measured."""
    return {
        "method": "greedy generate, one question a prompt, exact match",
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "batch_size": batch_size,
        "device": describe_device(model.device),
        "packages": package_versions(),
    }


def main(
    folder: Annotated[Path | None, typer.Option(help="folder of the model; the bundled one if left out")] = None,
    limit: Annotated[int | None, typer.Option(help="first questions of easy-VQA's test split; all if left out")] = None,
    scenes: Annotated[int, typer.Option(help="number of held-out scenes")] = 500,
    batch_size: Annotated[int, typer.Option(help="questions a batch")] = 64,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="JSON record to write; keeps what it says of training")] = None,
) -> None:
    """Evaluate a reference model and write or print the record."""
    folder = folder or reference_folder()
    model, processor = load_folder(folder)
    model = model.to(device)
    evaluation = {
        **conditions(model, batch_size),
        "easy_vqa": easy_vqa_record(model, processor, limit, batch_size),
        "scenes": scenes_record(model, processor, scenes, batch_size),
    }
    earlier = folder / "training_record.json"
    record = json.loads(earlier.read_text(encoding="utf-8")) if earlier.is_file() else {}
    text = json.dumps({**record, "evaluation": evaluation}, indent=2)
    if output is None:
        typer.echo(text)
    else:
        output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
