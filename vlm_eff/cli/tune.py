"""`vlm-eff tune`: the settings that meet a budget and keep the answers, written as a preset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer
from rich.progress import Progress
from rich.table import Table

from vlm_eff.cli.output import print_json, print_table, say, stderr
from vlm_eff.core.config import parse_spec
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.files import check_place
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.eval.tasks import load_task
from vlm_eff.eval.tuning.budget import parse_budget
from vlm_eff.eval.tuning.tune import Judged, Tuned, TuneSettings, tune
from vlm_eff.recipes.preset import SUFFIX, save_preset


@dataclass(frozen=True)
class TuneOptions:
    """What the command line said."""

    task: str
    data: Path | None
    budget: str
    max_drop: str
    output: Path
    trials: int
    calibration: int
    runoff: int
    finalists: int
    validation: int
    batch_size: int
    pairs: int
    seed: int
    model: str | None
    dtype: str
    device: str
    attention: str
    as_json: bool


def tune_model(options: TuneOptions) -> None:
    """Search, judge on held-out items, print, and write the preset where it keeps the answers."""
    if options.output.suffix != SUFFIX:
        accepted = f"a file that ends in {SUFFIX}, by which presets are known"
        raise ConfigError(explain(f"--output {options.output}", accepted, "Choose another name"))
    check_place(options.output)
    settings = TuneSettings(
        parse_budget(options.budget),
        parse_drop(options.max_drop),
        options.trials,
        options.calibration,
        options.runoff,
        options.finalists,
        options.validation,
        options.batch_size,
        options.seed,
        options.pairs,
    )
    name, arguments = parse_spec(options.task)
    task = load_task(name, options.data, split=arguments.pop("split", None), **arguments)
    quiet_libraries()
    subject = load_subject(options.model, dtype=options.dtype, device=options.device, attention=options.attention)
    journal = options.output.with_suffix(".study.jsonl")
    with Progress(console=stderr(), transient=True) as bar:
        job = bar.add_task("searching", total=settings.trials)
        tuned = tune(
            subject,
            task,
            settings,
            journal=journal,
            watch=lambda asked, trials, best: bar.update(job, completed=asked, total=trials),
        )
    if tuned.keeps:
        save_preset(options.output, tuned.preset(options.output.stem))
    if options.as_json:
        print_json({"keeps": tuned.keeps, "preset": str(options.output) if tuned.keeps else None} | tuned.about())
    else:
        print_table(tuned_table(tuned))
    _close(tuned, options.output)


def parse_drop(text: str) -> float:
    """`1%` or `0.01` as a share.

    Raises:
        ConfigError: no number.
    """
    try:
        return float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        raise ConfigError(explain(f"--max-drop {text!r}", "a share such as 1% or 0.01", "Correct it")) from None


def tuned_table(tuned: Tuned) -> Table:
    """What was found, on the items it was searched on and on those it had not seen."""
    table = Table(title=" + ".join(plugin.name for plugin in tuned.best.plugins))
    for name in ("items", "n", "bare", "tuned", "difference", "same answer", "n_eq", "FLOPs", "KV bytes"):
        table.add_column(name, justify="left" if name == "items" else "right")
    for name, judged in (("calibration", tuned.calibration), ("held out", tuned.validation)):
        table.add_row(name, *_cells(judged))
    limits = tuned.settings.budget.limits
    budget = [f"{limits[name]:.0%}" if name in limits else "" for name in ("n_eq", "flops", "kv")]
    table.add_row("budget", "", "", "", f"at least {-tuned.settings.max_drop:.1%}", "", *budget)
    return table


def _cells(judged: Judged) -> list[str]:
    delta = judged.delta
    around = "" if delta.low is None or delta.high is None else f" [{delta.low:+.1%}, {delta.high:+.1%}]"
    return [
        str(judged.n),
        f"{judged.bare:.1%}",
        f"{judged.accuracy:.1%}",
        f"{delta.value:+.1%}{around}",
        f"{judged.same:.1%}",
        f"{judged.costs.n_eq:.1%}",
        f"{judged.costs.flops:.1%}",
        f"{judged.costs.kv:.1%}",
    ]


def _close(tuned: Tuned, output: Path) -> None:
    """Say what became of it, and leave with 1 where the answers were not kept, or a limit was not."""
    say(
        f"{tuned.asked} candidates asked, {tuned.refused} refused before any answer: over budget, or not to be attached"
    )
    if tuned.first_token is not None:
        asked = tuned.settings.budget.ttft
        beside = "" if asked is None else f"; the budget is {asked:.2f}"
        say(f"time to the first token, tuned / bare: {tuned.first_token}{beside}")
    for name, value in tuned.missed.items():
        say(f"the budget of {name} is missed: measured {value:.3f}; give a smaller budget and tune again")
    if tuned.keeps:
        say(f'wrote {output}: attach(model, vlm_eff.plugin("{output}")), or --plugin {output}')
        if tuned.missed:
            raise typer.Exit(1)
        return
    loss = -tuned.validation.delta.value
    say(
        f"nothing written: accuracy on held-out items drops by {loss:.1%}, allowed are {tuned.settings.max_drop:.1%}; "
        "give a larger budget, a larger --max-drop, or more --trials and --calibration"
    )
    raise typer.Exit(1)
