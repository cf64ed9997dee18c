"""The same evaluation in one process or in several, each with its own model and its own share of the batches.

Several processes: torchrun --nproc-per-node 2 examples/13_evaluate_with_torchrun.py
On a real model: torchrun --nproc-per-node 4 examples/13_evaluate_with_torchrun.py --model smol --output runs
"""

import tempfile
from pathlib import Path

import torch.distributed as dist
import typer

from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.eval.report.cells import with_interval
from vlm_eff.eval.runs.arms import Arm
from vlm_eff.eval.runs.folder import Run
from vlm_eff.eval.runs.plan import Shard
from vlm_eff.eval.runs.run import RunSettings, owner_of
from vlm_eff.eval.runs.sweep import Asked, Sweep, Wanted
from vlm_eff.eval.stats.comparison import compare_runs
from vlm_eff.eval.tasks import load_task
from vlm_eff.tokens import fastv

FASTV = Arm("fastv", (fastv(keep_ratio=0.3),))


def main(model: str | None = None, output: Path | None = None, scenes: int = 6) -> None:
    quiet_libraries()
    mine = owner_of()  # RANK and WORLD_SIZE, as torchrun sets them; the whole run elsewhere
    folder = [output or Path(tempfile.mkdtemp())]
    if mine.count > 1:
        # the only thing that processes say to one another: where, and when they are done
        dist.init_process_group("gloo")
        dist.broadcast_object_list(folder)
    subject, task = load_subject(model), load_task("scenes", scenes=scenes)

    def ask(part: Shard) -> dict[str, Run]:
        sweep = Sweep(subject, [Asked(task)], folder[0], RunSettings(batch_size=8), part)
        sweep.ask(Wanted((FASTV,), baselines=False))
        return sweep.runs[task.name]

    runs = ask(mine)
    own = f"samples-{mine.rank}.jsonl" if mine.count > 1 else "samples.jsonl"
    lines = {file.parent.name: len(file.read_text().splitlines()) for file in sorted(folder[0].rglob(own))}
    print(f"process {mine.rank} of {mine.count} asked {lines}")
    if mine.count > 1:
        dist.barrier()
        dist.destroy_process_group()
        if mine.rank:
            return
        runs = ask(Shard())  # everything has its line already: nothing is asked again

    for row in compare_runs(runs["bare"], [runs[FASTV.label]]).rows:
        print(f"{row.summary.label}: {row.summary.items} answers, right {with_interval(row.summary.accuracy)} %")


if __name__ == "__main__":
    typer.run(main)
