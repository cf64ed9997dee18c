"""lmms-eval itself, where it is installed (`make test-bridges`), on a local task; nothing is collected elsewhere."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.bridges.broken import broken
from tests.saved_model import model_folder

__all__ = ["broken", "model_folder"]

collect_ignore_glob = [] if importlib.util.find_spec("lmms_eval") else ["test_*.py"]

COLORS = ("red", "green", "blue", "yellow", "black", "white")
YAML = """
task: colors
dataset_path: json
dataset_kwargs:
  data_files:
    test: colors.jsonl
test_split: test
output_type: generate_until
doc_to_visual: !function reading.doc_to_visual
doc_to_text: !function reading.doc_to_text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 4
  min_new_tokens: 4
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
lmms_eval_specific_kwargs:
  default:
    post_prompt: ""
  llava_hf:
    post_prompt: " answer:"
"""
READING = """
from PIL import Image


def doc_to_visual(doc):
    return [Image.open(doc["picture"]).convert("RGB")]


def doc_to_text(doc, lmms_eval_specific_kwargs):
    return doc["question"] + lmms_eval_specific_kwargs["post_prompt"]
"""


@pytest.fixture(scope="session", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    # read when the hub's library is imported, which lmms-eval does
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HOME"] = str(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task `colors` of six questions in files, with a prompt variant for `llava_hf`."""
    folder = tmp_path_factory.mktemp("tasks")
    lines = []
    for color in COLORS:
        Image.new("RGB", (40, 40), color).save(folder / f"{color}.png")
        lines.append({"picture": str(folder / f"{color}.png"), "question": "what color is it?", "answer": color})
    (folder / "colors.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "colors.yaml").write_text(YAML)
    (folder / "reading.py").write_text(READING)
    return folder


@pytest.fixture(scope="session")
def evaluate(task_folder: Path, model_folder: Path) -> Any:
    """lmms-eval on the task: `evaluate(arguments, model="vlm_eff")`; its results."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    def run(arguments: str, model: str = "vlm_eff", variant: str | None = None, **more: Any) -> Any:
        manager = TaskManager(
            "ERROR", include_path=str(task_folder), include_defaults=False, model_name=variant or model
        )
        # llava_hf's own default of device_map is refused by transformers 5.23
        base = f"pretrained={model_folder},device_map=cpu,{arguments}".rstrip(",")
        return simple_evaluate(
            model, base, tasks=["colors"], batch_size=1, device="cpu", task_manager=manager, bootstrap_iters=0, **more
        )

    return run
