"""What the bundled registers reach against training-free methods at the same budget: `python benchmarks/registers.py`.

Budgets are n_eq: visual tokens and registers, averaged over the decoder's layers. Answers count on exact match.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

import vlm_eff
from vlm_eff import attach
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.budgets import Sizes, reach, sizes_of
from vlm_eff.eval.loading import load_subject
from vlm_eff.eval.record import Record
from vlm_eff.reference import REGISTERS, registers_file
from vlm_eff.reference.evaluate import Sample, easy_vqa_samples, evaluate_reference, family_counts, scene_samples
from vlm_eff.reference.machine import describe_device
from vlm_eff.tokens import victor

RESULT = Path("benchmarks/results/registers.json")
RIVALS = ("fastv", "pyramiddrop", "uniform_grid", "random_drop", "average_pool")


def arms(sizes: Sizes) -> list[tuple[str, str, Plugin | None]]:
    """(budget, name, plugin) of everything that is compared."""
    made: list[tuple[str, str, Plugin | None]] = [("bare", "bare", None)]
    for (count, layer), init in REGISTERS.items():
        learned = victor(count, layer, weights=str(registers_file(count, layer)), init=init)
        n_eq = sum(learned.asked(sizes.visual_tokens, sizes.num_layers)) / sizes.num_layers
        budget = f"{n_eq:g}"
        made.append((budget, "victor, trained", learned))
        made.append((budget, "victor, before training", victor(count, layer, init=init, untrained=True)))
        made += [(budget, name, reach(name, n_eq, sizes)) for name in RIVALS]
    return made


def main(
    scenes: Annotated[int, typer.Option(help="held-out scenes")] = 150,
    easy: Annotated[int, typer.Option(help="first questions of easy-VQA's test split")] = 500,
    done: Annotated[Path, typer.Option(help="JSON lines of finished rows")] = Path("registers.jsonl"),
    output: Annotated[Path, typer.Option(help="record to write")] = RESULT,
) -> None:
    """Measure everything and write the record."""
    subject = load_subject(None)
    held_out = scene_samples("test", scenes)
    asked: dict[str, list[Sample]] = {"scenes": held_out, "easy_vqa": easy_vqa_samples("test", easy)}
    first = held_out[0]
    sizes = sizes_of(subject, [first.image], first.question.text)
    rows = [json.loads(line) for line in done.read_text().splitlines()] if done.is_file() else []
    plugins = {}
    for budget, name, plugin in arms(sizes):
        plugins[f"{name} @ {budget}"] = None if plugin is None else _portable(plugin)
        if any(row["budget"] == budget and row["name"] == name for row in rows):
            continue
        row = {"budget": budget, "name": name, **_measure(subject, plugin, asked)}
        rows.append(row)
        with done.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    record = Record(
        task="exact match of greedy answers: held-out scenes by question family, easy-VQA test questions",
        task_version=f"easy-vqa {version('easy-vqa')}; scenes of vlm-eff {vlm_eff.__version__}",
        model=subject.name,
        config={"plugins": plugins, "dtype": "float32", "batch_size": 64, "counts": family_counts(asked["scenes"])},
        device=describe_device(subject.device),
        n=sum(len(samples) for samples in asked.values()),
        result={"rows": rows, "scenes": scenes, "easy_vqa": easy, "training": _training()},
    )
    record.write(output)


def _measure(subject, plugin: Plugin | None, asked: dict[str, list[Sample]]) -> dict:
    def ask() -> dict:
        made = {}
        for name, samples in asked.items():
            accuracy = evaluate_reference(subject.model, subject.processor, samples)
            made[name] = {family: round(value, 4) for family, value in accuracy.items()}
        return made

    if plugin is None:
        return {"n_eq": None, **ask()}
    with attach(subject.model, plugin) as handle:
        made = ask()
        reports = handle.stats().prefills
    return {"n_eq": round(sum(report.n_eq for report in reports) / len(reports), 3), **made}


def _portable(plugin: Plugin) -> dict:
    """The plugin as a dict, with the name of a bundled file in place of its path."""
    plain = plugin.to_dict()
    if plain.get("weights"):
        plain["weights"] = f"vlm_eff/reference/registers/{Path(plain['weights']).name}"
    return plain


def _training() -> dict:
    files = [registers_file(*key).with_suffix(".json") for key in REGISTERS]
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


if __name__ == "__main__":
    typer.run(main)
