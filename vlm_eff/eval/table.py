"""Methods at equal budgets on the bundled model: `python -m vlm_eff.eval.table` writes the record behind the tables.

Accuracy is exact match of greedy answers, over easy-VQA's test questions and over held-out scenes. Methods that decide
for themselves how many tokens stay are measured at the given budgets by their scores, and once more as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

import vlm_eff
from vlm_eff.core.errors import ConfigError
from vlm_eff.core.registry import METHODS
from vlm_eff.eval.budgets import Setting, Sizes, reach, sizes_of
from vlm_eff.eval.calibrate import mean_n_eq
from vlm_eff.eval.compare import Arm, compare, timing_label
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.eval.record import Record
from vlm_eff.eval.subject import Subject, open_image
from vlm_eff.models.attach import attach
from vlm_eff.reference.evaluate import Sample, easy_vqa_samples, evaluate_reference, scene_samples
from vlm_eff.reference.machine import describe_device
from vlm_eff.tokens import for_budget

RECORD = Path("benchmarks/results/bundled_vlm.json")
SHARES = (1 / 2, 1 / 4, 1 / 9)
# methods whose count follows from picture and question: measured with their defaults as well
OWN_COUNT = ("atp", "pixelprune", "prumerge", "prumerge_plus", "zipvl_attention")
# other settings of methods that lose to a blind baseline, to tell which of their parts loses: method, arguments, share
VARIANTS: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("sparsevlm", {"layers": (2, 4, 6)}, 1 / 2),
    ("v2drop", {"schedule": "paper"}, 1 / 2),
    ("prumerge", {"neighbours": 1}, 1 / 4),
)
# why a training-free method has no row
_VIDEO = "acts on videos; a picture passes untouched"
EXEMPT: dict[str, str] = {
    **dict.fromkeys(("dycoke", "evs", "fastvid", "prunevid", "vcast"), _VIDEO),
    "zipvl_attention": "every token stays; only attention is computed among fewer",
    **dict.fromkeys(
        ("cross_modal_window", "streaming_heads", "top_blocks", "vertical_slash"),
        "every token stays; only pairs of them are left out of attention",
    ),
    "adaptive_pool": "pools to a grid that is given, not to a budget; average_pool is the same pooling at a budget",
}
# of the bundled model: methods for videos have nothing to do on it
FAMILY = "llava"

Row = dict[str, Any]


def table_methods() -> tuple[str, ...]:
    """Training-free methods that change how many visual tokens the decoder sees."""
    # a method of the tower gives every token back before the decoder
    known = [
        method for method in map(METHODS.get, METHODS) if "vision tower" not in method.acts and method.serves(FAMILY)
    ]
    return tuple(m.name for m in known if m.room == "tokens" and m.training_free and m.name not in EXEMPT)


def measure(
    subject: Subject,
    easy: Sequence[Sample],
    scenes: Sequence[Sample],
    *,
    shares: Sequence[float] = SHARES,
    methods: Sequence[str] | None = None,
    pairs: int = 30,
    done: Path | None = None,
) -> Record:
    """Ask every question bare and with each method at each budget; time the first token of one of them in pairs.

    done: JSON lines of rows that are finished; rows found there are not measured again, new ones are added
    """
    sample = scenes[0]
    picture = open_image(sample.image) if isinstance(sample.image, Path) else sample.image
    sizes = sizes_of(subject, [picture], sample.question.text)
    chosen = table_methods() if methods is None else tuple(methods)
    book = _Book(done, {"easy": len(easy), "scenes": len(scenes), "pairs": pairs, "version": vlm_eff.__version__})
    rows = [book.find("bare", None) or book.add("bare", None, _row(subject, None, None, easy, scenes))]
    settings, unreachable = [], []
    for share, method in ((s, m) for s in shares for m in chosen):
        n_eq = round(share * sizes.visual_tokens)
        try:
            settings.append(Setting(method, n_eq, reach(method, n_eq, sizes)))
        except ConfigError as error:
            unreachable.append({"method": method, "n_eq_asked": n_eq, "reason": str(error)})
    if methods is None:
        settings += [Setting(method, None, METHODS.get(method).make()) for method in OWN_COUNT]
        settings += [_variant(sizes, *variant) for variant in VARIANTS]
    with Progress(transient=True) as bar:
        for setting in bar.track(settings, description="asking"):
            made = setting.plugin.to_dict()
            row = book.find(setting.label, made)
            if row is None:
                arm = _timed(subject, setting, picture, sample, pairs)
                row = book.add(setting.label, made, _row(subject, setting, arm, easy, scenes))
            rows.append(row)
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
        result={"easy_vqa_n": len(easy), "scenes_n": len(scenes), "rows": rows, "unreachable": unreachable},
    )


def _variant(sizes: Sizes, method: str, arguments: dict[str, Any], share: float) -> Setting:
    n_eq = round(share * sizes.visual_tokens)
    made = for_budget(method, n_eq=n_eq, visual_tokens=sizes.visual_tokens, num_layers=sizes.num_layers, **arguments)
    label = ",".join(f"{name}={value}".replace(" ", "") for name, value in arguments.items())
    return Setting(f"{method}:{label}", n_eq, made)


def _timed(subject: Subject, setting: Setting, picture: Any, sample: Sample, pairs: int) -> Arm:
    plugins = {setting.label: setting.plugin}
    return compare(subject, [picture], sample.question.text, plugins, max_new_tokens=4, pairs=pairs).arms[0]


def _row(
    subject: Subject, setting: Setting | None, arm: Arm | None, easy: Sequence[Sample], scenes: Sequence[Sample]
) -> Row:
    attached: AbstractContextManager[Any] = attach(subject.model, setting.plugin) if setting else nullcontext()
    with attached as handle:
        right = {
            name: evaluate_reference(subject.model, subject.processor, samples)
            for name, samples in (("easy_vqa", easy), ("scenes", scenes))
        }
        realised = None if handle is None else mean_n_eq(handle)
    times = None if arm is None else arm.time_to_first_token
    return {
        "method": "bare" if setting is None else setting.method,
        "n_eq_asked": None if setting is None else setting.n_eq,
        "n_eq": None if realised is None else round(realised, 2),
        "prefill_flops_ratio": None if arm is None else round(arm.prefill_flops_ratio, 4),
        "kv_bytes_ratio": None if arm is None else round(arm.kv_bytes_ratio, 4),
        "first_token_ratio": None if times is None else [round(v, 3) for v in (times.ratio, times.low, times.high)],
        **{f"{name}_accuracy": round(share["all"], 4) for name, share in right.items()},
        **{f"{name}_by_family": _families(share) for name, share in right.items()},
    }


def _families(share: Mapping[str, float]) -> dict[str, float]:
    return {family: round(value, 4) for family, value in share.items() if family != "all"}


class _Book:
    """Finished rows on disk, so that a long measurement can be taken up again."""

    def __init__(self, path: Path | None, conditions: dict[str, Any]) -> None:
        self._path, self._conditions = path, conditions
        self._rows: dict[str, Row] = {}
        if path is not None and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                self._rows[entry["key"]] = entry["row"]

    def _key(self, label: str, plugin: Any) -> str:
        return json.dumps([label, plugin, self._conditions])

    def find(self, label: str, plugin: Any) -> Row | None:
        """The finished row of a setting, or None."""
        return self._rows.get(self._key(label, plugin))

    def add(self, label: str, plugin: Any, row: Row) -> Row:
        """Note a row, on disk as well when there is a file."""
        key = self._key(label, plugin)
        self._rows[key] = row
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"key": key, "row": row}) + "\n")
        return row


def main(
    output: Annotated[Path, typer.Option(help="Record to write.")] = RECORD,
    easy: Annotated[int, typer.Option(help="easy-VQA questions, spread over the test split.")] = 600,
    scenes: Annotated[int, typer.Option(help="Held-out scenes; up to nine questions each.")] = 100,
    pairs: Annotated[int, typer.Option(help="Timed pairs.")] = 30,
    method: Annotated[list[str] | None, typer.Option(help="Only these methods; all if left out.")] = None,
    done: Annotated[Path | None, typer.Option(help="Rows finished so far, to take a measurement up again.")] = None,
) -> None:
    """Measure and write the record; afterwards `make readme` shows it."""
    quiet_libraries()
    subject = load_subject(device="cpu")
    everything = easy_vqa_samples("test")
    spread = everything[:: max(1, len(everything) // easy)][:easy]
    record = measure(subject, spread, scene_samples("test", scenes), methods=method or None, pairs=pairs, done=done)
    output.parent.mkdir(parents=True, exist_ok=True)
    typer.echo(f"written: {record.write(output)}", err=True)


if __name__ == "__main__":
    typer.run(main)
