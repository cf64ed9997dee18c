"""lmms-eval asks its benchmarks of a model that carries plugins; without lmms-eval this says what is missing.

On a real model: python examples/14_evaluate_with_lmms_eval.py --model Qwen/Qwen2.5-VL-3B-Instruct --base qwen2_5_vl
"""

import importlib.util

import typer

from vlm_eff.core.errors import explain
from vlm_eff.eval.bridges import tasks_folder
from vlm_eff.eval.loading import quiet_libraries
from vlm_eff.reference import reference_folder

PLUGIN = "fastv:keep_ratio=0.5;layer=2"  # a semicolon, because lmms-eval separates its arguments with commas
COSTS = ("avg_n_eq", "avg_flops_ratio", "avg_kv_bytes_ratio", "avg_ttft_ms")


def main(model: str | None = None, base: str = "llava_hf", device: str = "cpu", limit: int = 12) -> None:
    if importlib.util.find_spec("lmms_eval") is None:
        print("skipped:", explain("lmms-eval is not installed", "the extra `lmms`", "Run: pip install 'vlm-eff[lmms]'"))
        return
    quiet_libraries()
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    # questions of easy-VQA, which come along; any task of lmms-eval goes the same way
    tasks = TaskManager("ERROR", include_path=str(tasks_folder()), include_defaults=False, model_name="vlm_eff")
    for plugin in ("", f",plugin={PLUGIN}"):
        found = simple_evaluate(
            "vlm_eff",
            f"base={base},pretrained={model or reference_folder()},device_map={device}{plugin}",
            tasks=["easy_vqa_test"],
            task_manager=tasks,
            limit=limit,
            batch_size=1,
            device=device,
            bootstrap_iters=0,
        )
        costs, scores = found["throughput"], found["results"]["easy_vqa_test"]
        print(plugin.removeprefix(",plugin=") or "bare", end=": ")
        print(f"exact match {scores['exact_match,none']:.2f}", end=", ")
        print(", ".join(f"{name} {costs[name]:.2f}" for name in COSTS if name in costs))


if __name__ == "__main__":
    typer.run(main)
