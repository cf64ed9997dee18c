"""lmms-eval with a plugin applied: the same answers, the same savings, and no failure that looks like 0 %."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.saved_model import TOKENS
from vlm_eff.eval.bridges import tasks_folder
from vlm_eff.eval.bridges.imports import import_runs
from vlm_eff.eval.bridges.lmms_samples import read_lmms
from vlm_eff.eval.bridges.watch import RunFailed

ROOT = Path(__file__).parents[3]


def answers(results: Any) -> list[str]:
    return [sample["filtered_resps"][0] for sample in results["samples"]["colors"]]


@pytest.mark.parametrize("simple", [False, True])
def test_keeping_everything_changes_no_answer(evaluate: Any, simple: bool) -> None:
    bare = evaluate("", model="llava_hf", variant="vlm_eff", force_simple=simple)
    same = evaluate("base=llava_hf,plugin=divprune:keep_ratio=1.0", force_simple=simple)
    assert answers(same) == answers(bare) and len(answers(same)) == 6 and all(answers(same))
    found = same["throughput"]
    assert found["avg_n_eq"] == found["avg_visual_tokens"] == TOKENS
    # the chat backend counts its tokens itself, the simple one does not: either way they are counted once
    assert found["total_gen_tokens"] == 24
    assert found["avg_ttft_ms"] > 0 and found["avg_tpot_ms"] > 0 and found["avg_failed_calls"] == 0


def test_half_the_tokens_are_reported(evaluate: Any, tmp_path: Path) -> None:
    record = tmp_path / "costs.json"
    found = evaluate(f"base=llava_hf,plugin=divprune:keep_ratio=0.5,record={record}")["throughput"]
    assert found["avg_n_eq"] == TOKENS / 2 and found["avg_kept_tokens"] == TOKENS / 2
    assert found["avg_kv_bytes_ratio"] < 0.7 and found["avg_flops_ratio"] < 0.7
    (written,) = json.loads(record.read_text())
    assert [call["n_eq"] for call in written["calls"]] == [TOKENS / 2] * 6


def test_several_plugins_and_a_preset(evaluate: Any, tmp_path: Path) -> None:
    preset = tmp_path / "preset.json"
    preset.write_text(json.dumps(["snapkv:keep_ratio=0.5"]))
    found = evaluate(f"base=llava_hf,plugin=fastv:keep_ratio=0.5;layer=4,preset={preset}")["throughput"]
    assert found["avg_n_eq"] == TOKENS * 0.75 and found["avg_kv_bytes_ratio"] < 0.7


def test_a_plugin_that_raises_is_a_failed_run(evaluate: Any, broken: str) -> None:
    with pytest.raises(RunFailed, match=r"6 of 6 calls raised.*the plugin is broken"):
        evaluate(f"base=llava_hf,plugin={broken}")
    scored = evaluate(f"base=llava_hf,plugin={broken},on_error=warn")
    assert answers(scored) == [""] * 6 and scored["throughput"]["avg_failed_calls"] == 6


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("plugin=divprune", "without base="),
        ("base=vllm,plugin=divprune", "engine of its own"),
        ("base=vlm_eff,plugin=divprune", "this bridge itself"),
        ("base=no_such_model", "model id of lmms-eval"),
    ],
)
def test_what_is_refused(evaluate: Any, arguments: str, word: str) -> None:
    with pytest.raises(RunFailed, match=word):
        evaluate(arguments)


def test_a_backend_without_a_module_is_refused() -> None:
    from vlm_eff.eval.bridges.lmms import build

    with pytest.raises(RunFailed, match="no torch module"):
        build("base=dummy,plugin=divprune", {}, simple=True)


def test_prompt_variants_go_by_the_name_given_to_the_task_manager(evaluate: Any) -> None:
    ours = evaluate("base=llava_hf,plugin=divprune")["samples"]["colors"][0]["arguments"][0]
    theirs = evaluate("base=llava_hf,plugin=divprune", variant="llava_hf")["samples"]["colors"][0]["arguments"][0]
    assert (ours, theirs) == ("what color is it?", "what color is it? answer:")


# what a third party's package does when lmms-eval starts, then the command line of lmms-eval
PROGRAM = """
import sys
from tests.bridges.broken import NAME, Broken
from vlm_eff.core.registry import METHODS, Method
METHODS.add(NAME, Method(NAME, Broken, "third party", "", ""))
sys.argv = ["lmms-eval", *sys.argv[1:]]
from lmms_eval.__main__ import cli_evaluate
cli_evaluate()
"""


@pytest.mark.parametrize("plugin", ["divprune:keep_ratio=0.5", "always_raises"])
def test_the_command_line(plugin: str, model_folder: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-c", PROGRAM, "--model", "vlm_eff", "--tasks", "easy_vqa_test", "--limit", "3"]
    arguments = f"base=llava_hf,pretrained={model_folder},device_map=cpu,plugin={plugin}"
    options = [
        "--include_path",
        str(tasks_folder()),
        "--device",
        "cpu",
        "--log_samples",
        "--output_path",
        str(tmp_path),
    ]
    done = subprocess.run(
        [*program, "--model_args", arguments, *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    samples = list(tmp_path.rglob("*_samples_*.jsonl"))
    if plugin == "always_raises":
        # an exception would leave with 0 here
        assert done.returncode == 1 and "3 of 3 calls raised" in done.stderr, done.stderr
        assert not samples
        return
    assert done.returncode == 0, done.stderr
    assert "avg_n_eq" in done.stdout
    (run,) = import_runs(samples, tmp_path / "run", read_lmms)
    assert run.finished and run.header.label == plugin and len(run.samples) == 3
    assert run.header.task["imported"]["means"]["n_eq"] == TOKENS / 2
    assert {sample.new_tokens > 0 for sample in run.samples.values()} == {True}
