"""Reading what VLMEvalKit writes: `MODEL_DATASET.xlsx`, `.tsv`, `.csv` or `.json`, one row a question."""

from __future__ import annotations

import csv
import json
import string
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import vlm_eff
from vlm_eff.core.errors import CapabilityError, InputError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.bridges.arguments import split_specs
from vlm_eff.eval.bridges.imports import Answered, Source, check_value, labelled

# what VLMEvalKit writes where it got no answer
_FAILED = "Failed to obtain answer"
_HIT = "hit"
EXACT = "exact"


def read_vlmevalkit(
    path: Path, metric: str | None = None, label: str | None = None, model: str | None = None
) -> tuple[Source, list[Answered]]:
    """Read a file of predictions, or of results, of VLMEvalKit.

    metric: column with the score; None takes `hit`, which its multiple-choice results have, and else "exact": the
            answer equals the gold one but for case and punctuation around it
    label:  what was put on the model; None takes the plugins in the model's name, and "bare" where there are none
    model:  name of the model; None takes what `status.json` or the name of the folder says

    Raises:
        InputError: no such file, or one without index and prediction. CapabilityError: .xlsx without openpyxl.
    """
    rows = _rows(path)
    if not rows or not {"index", "prediction"} <= set(rows[0]):
        raise InputError(
            explain(f"{path} without index and prediction", "a file of predictions or results", "Check the file")
        )
    metric = metric or (_HIT if _HIT in rows[0] else EXACT)
    status = _status(path)
    name = str(status.get("model_name") or path.parent.name)
    known = path.stem.startswith(f"{name}_")
    base, plugins, specs = plugins_in(name) if known else ("not told", (), ())
    found, named = labelled(label, plugins, specs)
    source = Source(
        tool="VLMEvalKit",
        version=str(status.get("commit") or "not told"),
        files=(path.name,),
        date=str(status.get("created_at") or datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat())[:10],
        model=model or base,
        task=path.stem.removeprefix(f"{name}_"),
        metric=metric,
        plugins=found,
        specs=named,
    )
    return source, [_answered(row, metric, path) for row in rows]


def plugins_in(name: str) -> tuple[str, tuple[Plugin, ...], tuple[str, ...]]:
    """Base, plugins and specs of a name that `register` made; a name in which a part is no method has none."""
    base, *specs = split_specs(name) if name else ("not told",)
    if not specs or any(spec.partition(":")[0] not in vlm_eff.methods() for spec in specs):
        return name, (), ()
    return base, tuple(vlm_eff.plugin(spec) for spec in specs), tuple(specs)


def _rows(path: Path) -> list[dict[str, Any]]:
    readers = {".xlsx": _sheet, ".tsv": _table, ".csv": _table, ".json": _documents}
    if path.suffix not in readers:
        # the harness falls back to pickle where it cannot write; a pickle runs what is in it
        raise InputError(explain(f"{path.name}", ", ".join(readers), "Set PRED_FORMAT=tsv and predict again"))
    try:
        return readers[path.suffix](path)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(explain(f"{path} cannot be read ({error})", "a file of VLMEvalKit", "Check it")) from None


def _table(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ","))


def _documents(path: Path) -> list[dict[str, Any]]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError("no list of rows")
    return found


def _sheet(path: Path) -> list[dict[str, Any]]:
    try:
        from openpyxl import load_workbook
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError:
        raise CapabilityError(
            explain(f"{path.name} without openpyxl", "openpyxl 3.1 or newer", 'Run: pip install "vlm_eff[eval]"')
        ) from None
    try:
        book = load_workbook(path, read_only=True)
    except (InvalidFileException, KeyError, OSError) as error:
        raise ValueError(str(error)) from None
    try:
        names, *rows = book.worksheets[0].iter_rows(values_only=True)
    finally:
        book.close()
    return [dict(zip(map(str, names), row, strict=False)) for row in rows]


def _answered(row: dict[str, Any], metric: str, path: Path) -> Answered:
    answer, target = _text(row["prediction"]), _text(row.get("answer"))
    where = f"index {row['index']} of {path.name}"
    value = float(_bare(answer) == _bare(target)) if metric == EXACT else _number(row.get(metric), metric, where)
    options = [f"{letter}. {row[letter]}" for letter in string.ascii_uppercase if row.get(letter) not in (None, "")]
    hint = [_text(row["hint"])] if row.get("hint") else []
    return Answered(
        id=_text(row["index"]),
        prompt="\n".join([*hint, _text(row.get("question")), *options]),
        target=target,
        answer=answer,
        value=value,
        error=answer if answer.startswith(_FAILED) else None,
    )


def _number(value: Any, metric: str, where: str) -> float:
    try:
        return check_value(float(value), metric, where)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        return check_value(value, metric, where)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _bare(text: str) -> str:
    return text.strip().strip(string.punctuation + string.whitespace).lower()


def _status(path: Path) -> dict[str, Any]:
    beside = path.parent / "status.json"
    found = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    return found if isinstance(found, dict) else {}
