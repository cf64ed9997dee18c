"""Two processes ask one task, each its part; one is killed, and whoever comes next does what is missing."""

from __future__ import annotations

import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tests.eval.runs.pictures import picture
from vlm_eff.eval.loading import load_subject
from vlm_eff.eval.runs.folder import read_run
from vlm_eff.eval.runs.run import RunSettings, owner_of, run_task
from vlm_eff.eval.tasks.item import Item, Picture, Task
from vlm_eff.reference.model import Preset, build_model
from vlm_eff.reference.vocabulary import build_processor
from vlm_eff.tokens import uniform_grid

PLUGINS, SETTINGS = (uniform_grid(keep_ratio=0.25),), RunSettings(batch_size=2)


def shapes() -> Task:
    """A dozen items about three pictures."""
    gold = {"answer": "circle"}
    items = [Item(f"q{at}", "what is it?", (Picture(picture(at % 3)),), gold, f"{at % 3}") for at in range(12)]
    return Task("shapes", "1", "exact_match", tuple(items), max_new_tokens=2)


def work(rank: int, folder: Path) -> None:
    """One process; the second is killed in the middle, when it has written a batch."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}

    def watch(done: int, total: int) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    subject = load_subject(str(folder / "small"), device="cpu")
    run_task(subject, shapes(), PLUGINS, folder / "parts", settings=SETTINGS, shard=owner_of(), watch=watch)


def killed_and_resumed(folder: Path) -> dict[str, Any]:
    """How many lines there were when one process was dead, and whether all are there when one more has run."""
    processor = build_processor()
    build_model(Preset(32, 2, 2, 32, 2, 2, 1, 16, 64), processor, seed=0).save_pretrained(folder / "small")
    processor.save_pretrained(folder / "small")
    context = torch.multiprocessing.start_processes(work, (folder,), 2, start_method="fork", join=False)
    for process in context.processes:
        process.join()
    codes = [process.exitcode for process in context.processes]
    with (folder / "parts" / "samples-1.jsonl").open("a") as stream:
        stream.write('{"id": "q')
    left = read_run(folder / "parts")
    subject = load_subject(str(folder / "small"), device="cpu")
    resumed = run_task(subject, shapes(), PLUGINS, folder / "parts", settings=SETTINGS)
    whole = run_task(subject, shapes(), PLUGINS, folder / "whole", settings=SETTINGS)
    lines = [{name: asdict(one) for name, one in run.samples.items()} for run in (resumed, whole)]
    return {"codes": codes, "left": len(left.samples), "finished": resumed.finished, "same": lines[0] == lines[1]}
