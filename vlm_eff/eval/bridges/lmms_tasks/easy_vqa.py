"""What the task `easy_vqa_test` of lmms-eval asks: read by lmms-eval from beside the yaml, never imported as a module.

Questions come in an order that spreads families: the package lists all questions of a picture together, so that a limit
would ask about few pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from vlm_eff.reference.easy_vqa import load_easy_vqa


def process_docs(named: Any) -> Any:
    """The questions of the split that the one line of `named` names, every picture's first, then its second, ..."""
    from datasets import Dataset

    asked: dict[str, int] = {}
    rows = []
    for number, (path, question, answer) in enumerate(load_easy_vqa(named[0]["split"])):
        place = asked[str(path)] = asked.get(str(path), -1) + 1
        row = {"question_id": str(number), "picture": str(path), "question": question, "answer": answer}
        rows.append((place, number, row))
    return Dataset.from_list([row for _, _, row in sorted(rows, key=lambda one: one[:2])])


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """The picture of a question."""
    with Image.open(Path(doc["picture"])) as picture:
        return [picture.convert("RGB")]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, str] | None = None) -> str:
    """The question, between what the prompt variant of the model puts before and behind it."""
    around = lmms_eval_specific_kwargs or {}
    return f"{around.get('pre_prompt', '')}{doc['question']}{around.get('post_prompt', '')}"
