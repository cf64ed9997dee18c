"""Ask a task bare, with two methods and with a blind baseline, and say what can be said of the difference."""

import tempfile
from pathlib import Path

from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.eval.runs.arms import Arm
from vlm_eff.eval.runs.run import RunSettings
from vlm_eff.eval.runs.sweep import Asked, Sweep, Wanted
from vlm_eff.eval.stats.comparison import compare_runs
from vlm_eff.eval.tasks import load_task
from vlm_eff.tokens import fastv, pyramiddrop, uniform_grid

quiet_libraries()
subject = load_subject(device="cpu")
task = load_task("scenes", scenes=12)
arms = [Arm(name, (plugin,)) for name, plugin in {
    "pyramiddrop": pyramiddrop(keep_ratio=0.5),
    "fastv": fastv(keep_ratio=0.3),
    "uniform_grid": uniform_grid(keep_ratio=0.5),
}.items()]  # fmt: skip

with tempfile.TemporaryDirectory() as folder:  # name one of your own: a run that was cut goes on where it ended
    sweep = Sweep(subject, [Asked(task)], Path(folder), RunSettings(batch_size=32))
    sweep.ask(Wanted(tuple(arms), baselines=False))
    runs = sweep.runs[task.name]
    found = compare_runs(runs["bare"], [runs[arm.label] for arm in arms])

for row in found.rows:
    one, right = row.summary, row.summary.accuracy
    line = f"{one.label:14s} n_eq {one.costs['n_eq']:5.1f}  accuracy {right.value:.3f}"
    line += f" [{right.low:.3f}, {right.high:.3f}]"
    if row.paired is not None:
        line += f"  against bare {row.paired.delta.value:+.3f}, p = {row.paired.test.p:.2f}"
    print(line)
print(found.beaten)
