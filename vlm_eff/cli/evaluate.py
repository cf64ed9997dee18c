"""`vlm-eff eval`: tasks asked of a model bare, with plugins, and with baselines that do not look."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import Progress

from vlm_eff.cli.compare_runs import print_compared
from vlm_eff.cli.output import print_json, print_text, say, stderr
from vlm_eff.cli.run import together_of
from vlm_eff.core.config import parse_spec
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.files import check_place, make_folder, write_file
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.eval.runs.arms import Arm
from vlm_eff.eval.runs.run import RunSettings, owner_of
from vlm_eff.eval.runs.sweep import Asked, Sweep, Wanted, Watch
from vlm_eff.eval.stats.comparison import compare_runs
from vlm_eff.eval.tasks import load_task
from vlm_eff.eval.token_methods import budget_methods
from vlm_eff.models.adapter import adapter_for


@dataclass(frozen=True)
class EvalOptions:
    """What the command line said."""

    tasks: list[str]
    data: Path | None
    plugins: list[str]
    methods: list[str]
    shares: list[float]
    baselines: bool
    seeds: int
    output: Path
    record: Path | None
    limit: int | None
    batch_size: int
    pairs: int
    seed: int
    model: str | None
    dtype: str
    device: str
    attention: str
    as_json: bool


def evaluate(options: EvalOptions) -> None:
    """Ask everything that has no line yet, then print and write what was found."""
    arms = arms_of(options.plugins)
    if bool(options.methods) != bool(options.shares):
        given = "--method without --share" if options.methods else "--share without --method"
        raise ConfigError(explain(given, "both or none", "Say which methods, and at which shares of the tokens"))
    asked = [_asked(spec, options) for spec in options.tasks]
    names = [one.task.name for one in asked]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        accepted = "each task once: its runs have one folder"
        raise ConfigError(explain(f"--task {twice} twice", accepted, "Ask the other split into another --output"))
    make_folder(options.output)
    if options.record is not None:
        check_place(options.record)
    quiet_libraries()
    subject = load_subject(options.model, dtype=options.dtype, device=options.device, attention=options.attention)
    every = budget_methods(adapter_for(subject.model).name)
    methods = tuple(one for spec in options.methods for one in (every if spec == "all" else (spec,)))
    with Progress(console=stderr(), transient=True) as bar:

        @contextmanager
        def watching(task: str, arm: str) -> Iterator[Watch]:
            job = bar.add_task(f"{task}, {arm}", total=None)
            yield lambda done, total: bar.update(job, completed=done, total=total)
            bar.remove_task(job)

        sweep = Sweep(
            subject, asked, options.output, RunSettings(options.batch_size, seed=options.seed), owner_of(), watching
        )
        record = sweep.ask(
            Wanted(tuple(arms), methods, tuple(options.shares), options.baselines, options.seeds, options.pairs)
        )
    if record is None:
        say(f"this process has done its part; run the command once more to sum up {options.output}")
        return
    text = json.dumps(asdict(record), indent=2) + "\n"
    for path in (options.output / "record.json", options.record):
        if path is not None:
            write_file(path, text)
    if options.as_json:
        print_json(asdict(record))
        return
    for name, runs in sweep.runs.items():
        print_text(name)
        print_compared(compare_runs(runs["bare"], [run for label, run in runs.items() if label != "bare"]))
    for label, reason in record.result["unreachable"].items():
        say(f"not asked: {label}: {reason}")


def arms_of(specs: list[str]) -> list[Arm]:
    """One arm a spec; see `together_of`."""
    return [Arm(spec, plugins, plugins[0].name) for spec, plugins in together_of(specs).items()]


def _asked(spec: str, options: EvalOptions) -> Asked:
    name, arguments = parse_spec(spec)
    limit = arguments.pop("limit", options.limit)
    split = arguments.pop("split", None)
    return Asked(load_task(name, options.data, split=split, **arguments), limit)
