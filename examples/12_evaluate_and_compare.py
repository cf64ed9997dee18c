"""Ask a task bare and with three methods, and say what can be said of the difference.

On a real model: python examples/12_evaluate_and_compare.py --model smol (or a folder, or an id of the hub)
"""

import tempfile
from pathlib import Path

import typer

from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.eval.report.cells import with_interval
from vlm_eff.eval.runs.arms import Arm
from vlm_eff.eval.runs.run import RunSettings
from vlm_eff.eval.runs.sweep import Asked, Sweep, Wanted
from vlm_eff.eval.stats.comparison import compare_runs
from vlm_eff.eval.tasks import load_task
from vlm_eff.tokens import fastv, pyramiddrop, uniform_grid

ARMS = (
    Arm("pyramiddrop", (pyramiddrop(keep_ratio=0.5),)),
    Arm("fastv", (fastv(keep_ratio=0.3),)),
    Arm("uniform_grid", (uniform_grid(keep_ratio=0.5),)),
)


def main(model: str | None = None, scenes: int = 6) -> None:
    quiet_libraries()
    subject, task = load_subject(model), load_task("scenes", scenes=scenes)

    with tempfile.TemporaryDirectory() as folder:  # name one of your own: a run that was cut goes on where it ended
        sweep = Sweep(subject, [Asked(task)], Path(folder), RunSettings(batch_size=32))
        sweep.ask(Wanted(ARMS, baselines=False))
        runs = sweep.runs[task.name]
        found = compare_runs(runs["bare"], [runs[arm.label] for arm in ARMS])

    for row in found.rows:
        one, beside = row.summary, ""
        if row.paired is not None:
            beside = f", against bare {with_interval(row.paired.delta, signed=True)}, p = {row.paired.test.p:.2f}"
        print(f"{one.label:12s} n_eq {one.costs['n_eq']:5.1f}, right {with_interval(one.accuracy)} %{beside}")
    print(found.beaten)


if __name__ == "__main__":
    typer.run(main)
