"""Methods at equal budgets on the bundled model: `python -m vlm_eff.eval.table` writes the record behind the README.

Accuracy is exact match of greedy answers, over easy-VQA's test questions and over held-out scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

import vlm_eff
from vlm_eff.eval.budgets import Setting, settings_at, sizes_of
from vlm_eff.eval.compare import Arm, compare, timing_label
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.eval.record import Record
from vlm_eff.eval.subject import Subject, open_image
from vlm_eff.models.attach import attach
from vlm_eff.reference.evaluate import Sample, easy_vqa_samples, evaluate_reference, scene_samples
from vlm_eff.reference.machine import describe_device

RECORD = Path("benchmarks/results/bundled_vlm.json")
METHODS = ("fastv", "pyramiddrop", "feather", "uniform_grid", "random_drop", "average_pool")
SHARES = (1 / 2, 1 / 3)


def measure(
    subject: Subject,
    easy: Sequence[Sample],
    scenes: Sequence[Sample],
    *,
    shares: Sequence[float] = SHARES,
    methods: Sequence[str] = METHODS,
    pairs: int = 30,
) -> Record:
    """Ask every question bare and with each method at each budget; time the first token of one of them in pairs."""
    sample = scenes[0]
    picture = open_image(sample.image) if isinstance(sample.image, Path) else sample.image
    sizes = sizes_of(subject, [picture], sample.question.text)
    settings = settings_at(sizes, methods, shares)
    arms = compare(
        subject,
        [picture],
        sample.question.text,
        {setting.label: setting.plugin for setting in settings},
        max_new_tokens=4,
        pairs=pairs,
    ).arms
    rows = [_row(subject, None, None, easy, scenes)]
    with Progress(transient=True) as bar:
        for setting, arm in bar.track(list(zip(settings, arms, strict=True)), description="asking"):
            rows.append(_row(subject, setting, arm, easy, scenes))
    return Record(
        task="exact match of greedy answers: easy-VQA test questions, held-out scenes",
        task_version=f"easy-vqa {version('easy-vqa')}; scenes of vlm-eff {vlm_eff.__version__}",
        model=subject.name,
        config={
            "plugins": {setting.label: setting.plugin.to_dict() for setting in settings},
            "dtype": str(subject.model.dtype).removeprefix("torch."),
            "attention": "sdpa",
            "batch_size": 64,
            "timing": timing_label(subject),
            "timed_pairs": pairs,
            "timed_question": {"images": 1, "visual_tokens": sizes.visual_tokens, "layers": sizes.num_layers},
        },
        device=describe_device(subject.device),
        n=len(easy) + len(scenes),
        result={"easy_vqa_n": len(easy), "scenes_n": len(scenes), "rows": rows},
    )


def _row(
    subject: Subject, setting: Setting | None, arm: Arm | None, easy: Sequence[Sample], scenes: Sequence[Sample]
) -> dict[str, Any]:
    attached: AbstractContextManager[object] = attach(subject.model, setting.plugin) if setting else nullcontext()
    with attached:
        right = {
            name: evaluate_reference(subject.model, subject.processor, samples)
            for name, samples in (("easy_vqa", easy), ("scenes", scenes))
        }
    times = None if arm is None else arm.time_to_first_token
    return {
        "method": "bare" if setting is None else setting.method,
        "n_eq_asked": None if setting is None else setting.n_eq,
        "n_eq": None if arm is None else round(arm.n_eq, 2),
        "prefill_flops_ratio": None if arm is None else round(arm.prefill_flops_ratio, 4),
        "kv_bytes_ratio": None if arm is None else round(arm.kv_bytes_ratio, 4),
        "first_token_ratio": None if times is None else [round(v, 3) for v in (times.ratio, times.low, times.high)],
        **{f"{name}_accuracy": round(share["all"], 4) for name, share in right.items()},
        "scenes_by_family": {family: round(share, 4) for family, share in right["scenes"].items() if family != "all"},
    }


def main(
    output: Annotated[Path, typer.Option(help="Record to write.")] = RECORD,
    easy: Annotated[int, typer.Option(help="easy-VQA questions, spread over the test split.")] = 600,
    scenes: Annotated[int, typer.Option(help="Held-out scenes; up to nine questions each.")] = 100,
    pairs: Annotated[int, typer.Option(help="Timed pairs.")] = 30,
) -> None:
    """Measure and write the record; afterwards `make readme` shows it."""
    quiet_libraries()
    subject = load_subject(device="cpu")
    everything = easy_vqa_samples("test")
    spread = everything[:: max(1, len(everything) // easy)][:easy]
    record = measure(subject, spread, scene_samples("test", scenes), pairs=pairs)
    output.parent.mkdir(parents=True, exist_ok=True)
    typer.echo(f"written: {record.write(output)}", err=True)


if __name__ == "__main__":
    typer.run(main)
