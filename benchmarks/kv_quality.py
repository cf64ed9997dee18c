"""Accuracy of a model when its KV cache is compressed, for every method of the cache: kept shares and bits.

    python benchmarks/kv_quality.py --done kv_quality.jsonl        # goes on where an earlier run was interrupted
    python benchmarks/kv_quality.py --method snapkv --scenes 20 --easy 40 --output small.json
    python benchmarks/kv_quality.py --model smol --scenes 20 --easy 80 --column 0.5 --column 0.2 --output smol.json

Every token of an answer, the first too, comes out of the compressed cache: see `vlm_eff/eval/kv_questions.py`. Each row
is compared with the full cache, and with evicting such a share of the visual entries at random, question by question.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import torch
import typer

import vlm_eff
from vlm_eff.eval.cut_prompts import Ends
from vlm_eff.eval.kv_questions import ANSWER_TOKENS, Answers, prefilled
from vlm_eff.eval.kv_settings import KVSetting, acts_on_cache_alone, kv_settings
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.eval.record import Record
from vlm_eff.eval.stats.interval import cluster_codes, cluster_interval
from vlm_eff.eval.stats.paired import DIFFERENCES
from vlm_eff.eval.subject import Subject
from vlm_eff.reference.easy_vqa import family_of, load_easy_vqa
from vlm_eff.reference.evaluate import (
    Sample,
    easy_vqa_samples,
    family_counts,
    majority_baseline,
    scene_samples,
    scenes_training,
)
from vlm_eff.reference.machine import describe_device
from vlm_eff.reference.questions import Question

RESULT = Path("benchmarks/results/kv_quality.json")
BARE, RANDOM = "bare", "random_evict"
# the harder of the random baselines, and the one that keeps more: text is what must not go
TEXT_KEPT = f"{RANDOM}, visual entries only"
Row = dict[str, Any]


class Finished:
    """Finished answers on disk, one a line, so that a long measurement can be taken up again."""

    def __init__(self, path: Path | None, conditions: dict[str, Any]) -> None:
        self._path, self._conditions = path, conditions
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.is_file() else []
        entries = (json.loads(line) for line in lines)
        self._rows = {(one["ends"], one["spec"]): one["row"] for one in entries if one["conditions"] == conditions}

    def find(self, ends: str, spec: str) -> Row | None:
        """The row of a setting, or None."""
        return self._rows.get((ends, spec))

    def add(self, ends: str, spec: str, row: Row) -> None:
        """Note a row, on disk as well when there is a file."""
        self._rows[ends, spec] = row
        if self._path is not None:
            entry = {"ends": ends, "spec": spec, "conditions": self._conditions, "row": row}
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry) + "\n")


def measure(subject: Subject, asked: dict[str, list[Sample]], settings: list[KVSetting], finished: Finished) -> None:
    """Note a row of the full cache and one of each setting: what it answers when questions are asked in both ways."""
    for ends in get_args(Ends):
        left = [setting for setting in settings if finished.find(ends, setting.spec) is None]
        if not left and finished.find(ends, BARE) is not None:
            continue
        with prefilled(subject, asked, [setting.plugin for setting in left], ends) as questions:
            specs = [BARE, *(setting.spec for setting in left)]
            for spec, policy in zip(specs, [None, *questions.policies], strict=True):
                answers = questions.answer(policy)
                finished.add(ends, spec, _row(answers))
                said = "  ".join(f"{part} {found['all']:.3f}" for part, found in answers.accuracy.items())
                typer.echo(f"{ends:6}  {spec:60} {said}  bytes {answers.bytes_ratio:.3f}")


def finished_rows(settings: list[KVSetting], finished: Finished) -> list[Row]:
    """One row a setting that was asked in one way or both, the first of the full cache."""
    rows: list[Row] = [{"kind": "bare", "label": BARE, "column": 0, "spec": BARE}]
    rows += [{"kind": s.kind, "label": s.label, "column": s.column, "spec": s.spec} for s in settings]
    rows = [row | {ends: finished.find(ends, row["spec"]) for ends in get_args(Ends)} for row in rows]
    return [row for row in rows if any(row[ends] is not None for ends in get_args(Ends))]


def compared(rows: list[Row], asked: dict[str, list[Sample]]) -> list[Row]:
    """Rows with what they answer more than a full cache, and than such a share of the visual entries drawn at random.

    `more_than` [share, low, high] of each set of questions, with its 95 % interval over pictures.
    """
    made = []
    for row in rows:
        beside = {} if row["kind"] == "bare" else {"full": (BARE, 0.0)}
        if row["kind"] == "evict" and not row["label"].startswith(RANDOM):
            beside["random"] = (TEXT_KEPT, row["column"])
        for way in get_args(Ends):
            if (found := row[way]) is not None:
                others = {name: _find(rows, label, column, way) for name, (label, column) in beside.items()}
                margins = {name: _more(found, other, asked) for name, other in others.items() if other is not None}
                row = row | {way: found | {"more_than": margins}}
        made.append(row)
    return made


def _find(rows: list[Row], label: str, column: float, way: str) -> Row | None:
    found = [row[way] for row in rows if (row["label"], row["column"]) == (label, column)]
    return found[0] if found else None


def _more(found: Row, other: Row, asked: dict[str, list[Sample]]) -> dict[str, list[float | None]]:
    margins = {}
    for part, samples in asked.items():
        hits, others = (
            np.array([hit == "1" for hit in one["right"][part]], dtype=np.float64) for one in (found, other)
        )
        # questions about one picture are not independent
        more = cluster_interval(hits - others, cluster_codes(_pictures(samples)), limits=DIFFERENCES)
        margins[part] = [None if x is None else round(x, 4) for x in (more.value, more.low, more.high)]
    return margins


def _pictures(samples: list[Sample]) -> list[str]:
    """A name of each question's picture; questions about a scene share one picture object."""
    return [str(one.image) if isinstance(one.image, Path) else str(id(one.image)) for one in samples]


def majority(asked: dict[str, list[Sample]]) -> dict[str, float]:
    """What the commonest training answer of each family reaches, over each set of questions."""
    known = {
        "scenes": scenes_training(),
        "easy_vqa": [Question(text, answer, family_of(answer)) for _, text, answer in load_easy_vqa("train")],
    }
    return {part: round(majority_baseline(known[part], samples)["all"], 4) for part, samples in asked.items()}


def _row(answers: Answers) -> Row:
    rounded = {
        part: {name: round(share, 4) for name, share in found.items()} for part, found in answers.accuracy.items()
    }
    return {
        "bytes_ratio": round(answers.bytes_ratio, 4),
        "entries_ratio": round(answers.entries_ratio, 4),
        "accuracy": rounded,
        "right": {part: "".join(str(int(hit)) for hit in hits) for part, hits in answers.right.items()},
    }


def main(
    scenes: Annotated[int, typer.Option(help="Held-out scenes; up to nine questions each.")] = 40,
    easy: Annotated[int, typer.Option(help="First questions of easy-VQA's test split.")] = 100,
    method: Annotated[list[str] | None, typer.Option(help="Only these methods; all if left out.")] = None,
    done: Annotated[Path | None, typer.Option(help="JSON lines of finished rows, to go on from.")] = None,
    output: Annotated[Path, typer.Option(help="Record to write.")] = RESULT,
    model: Annotated[
        str | None, typer.Option(help="smol, a folder or a hub id; the bundled model if left out.")
    ] = None,
    column: Annotated[
        list[float] | None, typer.Option(help="Only these kept shares and bits; all if left out.")
    ] = None,
    write_only: Annotated[bool, typer.Option(help="Ask nothing: write what is in --done so far.")] = False,
) -> None:
    """Measure every method and write the record."""
    quiet_libraries()
    subject = load_subject(model, device="cpu", dtype="float32")
    asked = {"scenes": scene_samples("test", scenes), "easy_vqa": easy_vqa_samples("test", easy)}
    settings = kv_settings(None if method is None else tuple(method))
    settings = [setting for setting in settings if column is None or setting.column in (0, *column)]
    chosen = [setting for setting in settings if acts_on_cache_alone(setting.plugin)]
    counts = {part: family_counts(samples) for part, samples in asked.items()}
    finished = Finished(done, {"scenes": scenes, "easy": easy, "model": subject.name, "version": vlm_eff.__version__})
    if not write_only:
        measure(subject, asked, chosen, finished)
    rows = compared(finished_rows(chosen, finished), asked)
    specs = {row["spec"] for row in rows}
    output.parent.mkdir(parents=True, exist_ok=True)
    Record(
        task="exact match of greedy answers whose every token comes out of the compressed cache",
        task_version=f"easy-vqa {version('easy-vqa')}; scenes of vlm-eff {vlm_eff.__version__}",
        model=subject.name,
        config={
            "plugins": {setting.spec: setting.plugin.to_dict() for setting in chosen if setting.spec in specs},
            "left_out": sorted({setting.spec for setting in settings} - {setting.spec for setting in chosen}),
            "dtype": "float32",
            "attention": "sdpa",
            "batch_size": 64,
            "answer_tokens": ANSWER_TOKENS,
            "threads": torch.get_num_threads(),
            "counts": counts,
            "pictures": {part: len(set(_pictures(samples))) for part, samples in asked.items()},
            "majority": majority(asked),
        },
        device=describe_device(subject.device),
        n=sum(len(samples) for samples in asked.values()),
        result=rows,
    ).write(output)


if __name__ == "__main__":
    typer.run(main)
