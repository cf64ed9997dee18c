"""Reading what `lmms-eval --log_samples` writes: `DATE_samples_TASK.jsonl`, and `DATE_results.json` beside it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlm_eff.core.errors import InputError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.bridges.arguments import read_arguments, split_arguments
from vlm_eff.eval.bridges.imports import Answered, Source, check_value, labelled
from vlm_eff.eval.bridges.lmms import MODEL_ID

_BETWEEN = "_samples_"
# everything else in a line is a metric; doc_hash is that of "null" for every line in 0.7.3, and tells nothing
_NO_METRICS = {
    "doc_id",
    "target",
    "resps",
    "filtered_resps",
    "token_counts",
    "doc_hash",
    "input_media",
    "input",
    "arguments",
    "doc",
}


def read_lmms(
    path: Path, metric: str | None = None, label: str | None = None, model: str | None = None
) -> tuple[Source, list[Answered]]:
    """Read a samples file of lmms-eval.

    metric: which of the task's metrics is the score, `name` or `name.key` where it is a dict; None where there is one
    label:  what was put on the model; None takes the plugins of the model `vlm_eff`, and "bare" for other models
    model:  name of the model; None takes what the results say

    Raises:
        InputError: no such file, damaged or other lines, several metrics, or answers that are no text.
    """
    date, found, task = path.stem.partition(_BETWEEN)
    if not found:
        raise InputError(
            explain(f"{path.name}", f"a file named DATE{_BETWEEN}TASK.jsonl, from --log_samples", "Keep its name")
        )
    rows = _rows(path)
    beside = path.with_name(f"{date}_results.json")
    results = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    metric = metric or _only_metric(rows[0], path)
    lines = [_answered(row, metric, path) for row in rows]
    arguments, plugins, specs = _arguments(results)
    found_plugins, named = labelled(label, plugins, specs)
    config = results.get("config", {})
    asked = results.get("configs", {}).get(task, {})
    source = Source(
        tool="lmms-eval",
        version=str(results.get("lmms_eval_version") or "not told"),
        files=(path.name, *([beside.name] if results else [])),
        date=_iso(str(results.get("date") or date)),
        model=model or str(results.get("model_name") or config.get("model") or "not told"),
        task=task,
        metric=metric,
        task_version=_version(asked, results, task),
        max_new_tokens=(asked.get("generation_kwargs") or {}).get("max_new_tokens"),
        device=str(config.get("device") or ""),
        plugins=found_plugins,
        specs=named,
        settings={
            "batch_size": config.get("batch_size"),
            "limit": config.get("limit"),
            "seed": config.get("torch_seed"),
            "backend": config.get("model_backend"),
            "arguments": arguments,
            "gen_kwargs": config.get("gen_kwargs"),
            "system_instruction": results.get("system_instruction_sha"),
        },
        notes={
            "model_args": config.get("model_args"),
            "means": {k[4:]: v for k, v in results.get("throughput", {}).items() if k.startswith("avg_")},
        },
    )
    return source, lines


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(explain(f"{path} cannot be read ({error})", "JSON lines", "Check the file")) from None
    if not rows or not all(isinstance(row, dict) and {"doc_id", "filtered_resps"} <= set(row) for row in rows):
        raise InputError(
            explain(f"{path} without doc_id and filtered_resps", "lines of --log_samples", "Check the file")
        )
    return rows


def _only_metric(row: dict[str, Any], path: Path) -> str:
    found = [name for name in row if name not in _NO_METRICS]
    plain = [name for name in found if isinstance(row[name], bool | int | float)]
    if len(plain) == 1:
        return plain[0]
    inside = [f"{name}.{key}" for name in found if isinstance(row[name], dict) for key in row[name]]
    raise InputError(
        explain(f"{path.name} holds {len(plain)} metrics that are numbers", ", ".join(plain + inside), "Name a metric")
    )


def _answered(row: dict[str, Any], metric: str, path: Path) -> Answered:
    where = f"doc_id {row['doc_id']} of {path.name}"
    name, _, key = metric.partition(".")
    value = row.get(name)
    if key and isinstance(value, dict):
        value = value.get(key)
    parsed = row["filtered_resps"]
    # written only where the filter changed something
    answer = row.get("resps", parsed)
    while isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if not isinstance(answer, str) or not isinstance(parsed, str):
        raise InputError(
            explain(
                f"an answer of {where} that is no text",
                "tasks that generate one answer",
                "Likelihoods and repeats cannot be compared answer by answer",
            )
        )
    counts = [one for one in row.get("token_counts") or [] if one]
    return Answered(
        id=str(row["doc_id"]),
        prompt=str(row.get("input", "")),
        target=str(row.get("target", "")),
        answer=answer,
        value=check_value(value, metric, where),
        parsed=parsed,
        new_tokens=counts[0].get("output_tokens") if counts else None,
        media=tuple(_name(one) for one in row.get("input_media", [])),
    )


def _name(media: str) -> str:
    """Folder and name of a file; a picture that stands in the line itself is told by its last signs."""
    return f"inline {media[-16:]}" if media.startswith("data:") else "/".join(Path(media).parts[-2:])


def _arguments(results: dict[str, Any]) -> tuple[list[str], tuple[Plugin, ...], tuple[str, ...]]:
    """Arguments of the backend, alike with and without our bridge; plugins, and how they were written."""
    config = results.get("config", {})
    text = str(config.get("model_args") or "")
    if config.get("model") != MODEL_ID:
        return sorted(split_arguments(text)), (), ()
    asked = read_arguments(text)
    return sorted(split_arguments(asked.rest)), asked.plugins, asked.specs


def _version(asked: dict[str, Any], results: dict[str, Any], task: str) -> str:
    told = asked.get("metadata")
    told = told[0] if isinstance(told, list) and told else told
    return str((told or {}).get("version", results.get("versions", {}).get(task, "")))


def _iso(date: str) -> str:
    try:
        return datetime.strptime(date[:8], "%Y%m%d").replace(tzinfo=UTC).date().isoformat()
    except ValueError:
        return "not told"
