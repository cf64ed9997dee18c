"""Accuracy of the bundled model when its KV cache is compressed, for every method of the cache: kept shares and bits.

    python benchmarks/kv_quality.py --done kv_quality.jsonl        # goes on where an earlier run was interrupted
    python benchmarks/kv_quality.py --method snapkv --scenes 20 --easy 40 --output small.json

Every token of an answer, the first too, comes out of the compressed cache: see `vlm_eff/eval/kv_questions.py`.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer

import vlm_eff
from vlm_eff.eval.kv_questions import ANSWER_TOKENS, Answers, Ends, prefilled
from vlm_eff.eval.kv_settings import KVSetting, acts_on_cache_alone, kv_settings
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.eval.record import Record
from vlm_eff.reference.evaluate import Sample, easy_vqa_samples, family_counts, scene_samples
from vlm_eff.reference.machine import describe_device

RESULT = Path("benchmarks/results/kv_quality.json")
BARE = "bare"


class Finished:
    """Finished answers on disk, one a line, so that a long measurement can be taken up again."""

    def __init__(self, path: Path | None, conditions: dict[str, Any]) -> None:
        self._path, self._conditions = path, conditions
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.is_file() else []
        entries = (json.loads(line) for line in lines)
        self._rows = {(one["ends"], one["spec"]): one["row"] for one in entries if one["conditions"] == conditions}

    def find(self, ends: str, spec: str) -> dict[str, Any] | None:
        """The row of a setting, or None."""
        return self._rows.get((ends, spec))

    def add(self, ends: str, spec: str, row: dict[str, Any]) -> None:
        """Note a row, on disk as well when there is a file."""
        self._rows[ends, spec] = row
        if self._path is not None:
            entry = {"ends": ends, "spec": spec, "conditions": self._conditions, "row": row}
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry) + "\n")


def measure(
    subject: Any, asked: dict[str, list[Sample]], settings: list[KVSetting], finished: Finished
) -> list[dict[str, Any]]:
    """One row a setting, the first of the full cache: what it answers when questions are asked in both ways."""
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
    rows = [{"kind": "bare", "label": BARE, "column": 0, "spec": BARE}]
    rows += [{"kind": s.kind, "label": s.label, "column": s.column, "spec": s.spec} for s in settings]
    return [row | {ends: finished.find(ends, row["spec"]) for ends in get_args(Ends)} for row in rows]


def _row(answers: Answers) -> dict[str, Any]:
    rounded = {
        part: {name: round(share, 4) for name, share in found.items()} for part, found in answers.accuracy.items()
    }
    return {
        "bytes_ratio": round(answers.bytes_ratio, 4),
        "entries_ratio": round(answers.entries_ratio, 4),
        "accuracy": rounded,
    }


def main(
    scenes: Annotated[int, typer.Option(help="Held-out scenes; up to nine questions each.")] = 40,
    easy: Annotated[int, typer.Option(help="First questions of easy-VQA's test split.")] = 100,
    method: Annotated[list[str] | None, typer.Option(help="Only these methods; all if left out.")] = None,
    done: Annotated[Path | None, typer.Option(help="JSON lines of finished rows, to go on from.")] = None,
    output: Annotated[Path, typer.Option(help="Record to write.")] = RESULT,
) -> None:
    """Measure every method and write the record."""
    quiet_libraries()
    subject = load_subject(None, device="cpu")
    asked = {"scenes": scene_samples("test", scenes), "easy_vqa": easy_vqa_samples("test", easy)}
    settings = kv_settings(None if method is None else tuple(method))
    chosen = [setting for setting in settings if acts_on_cache_alone(setting.plugin)]
    counts = {part: family_counts(samples) for part, samples in asked.items()}
    finished = Finished(done, {"scenes": scenes, "easy": easy, "version": vlm_eff.__version__})
    rows = measure(subject, asked, chosen, finished)
    output.parent.mkdir(parents=True, exist_ok=True)
    Record(
        task="exact match of greedy answers whose every token comes out of the compressed cache",
        task_version=f"easy-vqa {version('easy-vqa')}; scenes of vlm-eff {vlm_eff.__version__}",
        model=subject.name,
        config={
            "plugins": {setting.spec: setting.plugin.to_dict() for setting in chosen},
            "left_out": sorted({setting.spec for setting in settings} - {setting.spec for setting in chosen}),
            "dtype": "float32",
            "attention": "sdpa",
            "batch_size": 64,
            "answer_tokens": ANSWER_TOKENS,
            "threads": torch.get_num_threads(),
            "counts": counts,
        },
        device=describe_device(subject.device),
        n=sum(len(samples) for samples in asked.values()),
        result=rows,
    ).write(output)


if __name__ == "__main__":
    typer.run(main)
