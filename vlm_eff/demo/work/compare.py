"""Several methods and the blind baselines at one budget, asked one question beside the bare model.

Over one question accuracy means nothing. What is compared instead is loyalty: the probability that a method gives to
the answer of the bare model, whatever that was (`vlm_eff.eval.loyalty`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

import vlm_eff
from vlm_eff.core.config import parse_spec
from vlm_eff.core.errors import CapabilityError, ConfigError, explain
from vlm_eff.core.handle import Handle
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import METHODS
from vlm_eff.demo.work.watching import Watch
from vlm_eff.eval.budgets import Sizes, sizes_of
from vlm_eff.eval.compare import Arm, arm_of, timing_label
from vlm_eff.eval.costs.watch import run_timed
from vlm_eff.eval.loyalty import loyalty
from vlm_eff.eval.measure import PairedTimes, paired_runs
from vlm_eff.eval.overlay import overlay
from vlm_eff.eval.record import Record
from vlm_eff.eval.runs.arms import at_shares
from vlm_eff.eval.stats.baselines import BLIND
from vlm_eff.eval.streaming import Spoken, answer_aloud
from vlm_eff.eval.subject import Subject
from vlm_eff.models.attach import attach
from vlm_eff.reference.machine import describe_device

MOST_METHODS, MOST_TOKENS, MOST_PAIRS = 10, 64, 50
HEAD = ("", "answer", "same as bare", "loyalty", "n_eq", "FLOPs", "KV bytes", "first token")
_WARM_UP = 2
_SIDE = 240


@dataclass(frozen=True)
class Contest:
    """What is asked, and of which methods at which budget.

    methods: names, or specs without what the budget sets      pairs: timed pairs of (method, bare), 0 times nothing
    share:   of the visual tokens, averaged over the layers    seed:  of the order inside the pairs
    """

    images: tuple[Image.Image, ...]
    prompt: str
    methods: tuple[str, ...]
    share: float
    max_new_tokens: int = 16
    pairs: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(set(self.methods)) == len(self.methods) <= MOST_METHODS:
            got = f"{len(self.methods)} methods" if len(set(self.methods)) == len(self.methods) else "a method twice"
            raise ConfigError(explain(got, f"1 to {MOST_METHODS} different ones", "Correct the list"))
        # registers those of every room
        vlm_eff.methods()
        for spec in self.methods:
            name, settings = parse_spec(spec)
            METHODS.get(name)
            if "keep_ratio" in settings:
                got = f"{spec!r} with a keep_ratio of its own"
                raise ConfigError(explain(got, "settings that the budget leaves free", "Leave keep_ratio out"))
        if not 1 <= self.max_new_tokens <= MOST_TOKENS:
            got = f"answers of {self.max_new_tokens} tokens"
            raise ConfigError(explain(got, f"1 to {MOST_TOKENS}", "Correct the length"))
        if self.pairs and not 3 <= self.pairs <= MOST_PAIRS:
            raise ConfigError(explain(f"{self.pairs} timed pairs", f"0, or 3 to {MOST_PAIRS}", "Correct it"))


@dataclass(frozen=True)
class Entry:
    """A method at the budget.

    arm:      answer and costs            loyalty: probability of the bare answer, 0 to 1
    baseline: it looks at nothing         kept:    a picture an image, of what is left at the last layer; empty where
                                                   it cannot be drawn
    """

    arm: Arm
    method: str
    plugin: Plugin
    baseline: bool
    loyalty: float
    kept: tuple[Image.Image, ...]


@dataclass(frozen=True)
class Compared:
    """A question, asked of all.

    loyalty: of the bare model to itself; n_eq: what was asked for, tokens; unreachable: why, by label
    """

    contest: Contest
    model: str
    bare: str
    loyalty: float
    n_eq: int
    sizes: Sizes
    entries: tuple[Entry, ...]
    unreachable: Mapping[str, str]
    device: str
    timing: str

    @property
    def methods(self) -> tuple[str, ...]:
        """Those of the methods that reached the budget."""
        return tuple(entry.method for entry in self.entries if entry.method in self.contest.methods)

    def rows(self) -> list[tuple[str, ...]]:
        """Cells of the table below `HEAD`: the bare model, the methods, the baselines."""
        timed = "1" if self.contest.pairs else "not timed"
        whole = f"{self.sizes.visual_tokens}"
        return [("bare", self.bare, "-", f"{self.loyalty:.3f}", whole, "1", "1", timed), *map(_cells, self.entries)]

    def caption(self) -> str:
        """What the numbers are."""
        text = (
            f"{self.model}: {self.n_eq} of {self.sizes.visual_tokens} visual tokens, averaged over "
            f"{self.sizes.num_layers} layers. Loyalty: probability of the bare answer, mean over its tokens, of one "
            "question: no measure of accuracy. FLOPs and KV bytes: with the method / bare, decoder only."
        )
        if self.contest.pairs:
            text += f" First token: median of {self.contest.pairs} pairs [95 %], with / bare; {self.timing}."
        return text

    def to_record(self) -> Record:
        """Everything but the pictures, with what it takes to judge and repeat it."""
        contest = self.contest
        return Record(
            task="one question, several methods at one budget",
            task_version="1",
            model=self.model,
            config={
                "question": contest.prompt,
                "pictures": [list(image.size) for image in contest.images],
                "methods": list(contest.methods),
                "share": contest.share,
                "n_eq": self.n_eq,
                "visual_tokens": self.sizes.visual_tokens,
                "layers": self.sizes.num_layers,
                "max_new_tokens": contest.max_new_tokens,
                "pairs": contest.pairs,
                "seed": contest.seed,
                "timing": self.timing,
                "plugins": {entry.arm.plugin: entry.plugin.to_dict() for entry in self.entries},
            },
            device=self.device,
            n=1,
            result={
                "bare": {"answer": self.bare, "loyalty": self.loyalty},
                "arms": [_numbers(entry) for entry in self.entries],
                "unreachable": dict(self.unreachable),
            },
        )


def contend(subject: Subject, contest: Contest, watch: Watch) -> Compared:
    """Ask bare, then each method at the budget, then the blind baselines at the same one.

    Raises:
        ConfigError: an unknown method, a share that is none, or no method that reaches it.
        InputError: pictures or a prompt that cannot be used. Stopped: somebody stopped it.
    """
    watch.step(0.0, "counting tokens")
    sizes = sizes_of(subject, contest.images, contest.prompt)
    found, unreachable = at_shares(contest.methods, [contest.share], sizes, baselines=True)
    # showing a smaller picture is a baseline too, but one without a plugin
    arms = [arm for arm in found if arm.plugins]
    if not any(arm.method in contest.methods for arm in arms):
        raise ConfigError(" ".join(unreachable.values()))
    watch.step(0.05, "asking the bare model")
    inputs = subject.inputs(contest.images, contest.prompt)
    bare = _answer(subject, inputs, contest, watch, "bare")
    own = loyalty(subject, inputs, bare.ids)
    entries = []
    for place, arm in enumerate(arms):
        asked = _Asked(subject, inputs, contest, bare, watch, 0.1 + 0.9 * place / len(arms))
        entries.append(_entry(asked, arm.label, arm.method, arm.plugins[0]))
    watch.step(1.0, "done")
    n_eq = round(contest.share * sizes.visual_tokens)
    device, timing = describe_device(subject.device), timing_label(subject)
    return Compared(contest, subject.name, bare.text, own, n_eq, sizes, tuple(entries), unreachable, device, timing)


@dataclass(frozen=True)
class _Asked:
    """The question, made ready, and how far the work was when a method's turn came."""

    subject: Subject
    inputs: Any
    contest: Contest
    bare: Spoken
    watch: Watch
    share: float


def _entry(asked: _Asked, label: str, method: str, plugin: Plugin) -> Entry:
    subject, contest, watch = asked.subject, asked.contest, asked.watch
    watch.step(asked.share, f"asking with {label}")
    with attach(subject.model, plugin) as handle:
        said = _answer(subject, asked.inputs, contest, watch, label)
        report = handle.stats().last
        assert report is not None  # a picture was asked about
        kept = _drawn(subject, contest.images, handle, len(report.visual_per_layer) - 1)
        sure = loyalty(subject, asked.inputs, asked.bare.ids)
        times = _first_token(asked, handle, label) if contest.pairs else None
    arm = arm_of(label, said.text, asked.bare.text, report, times)
    return Entry(arm, method, plugin, method in BLIND, sure, kept)


def _answer(subject: Subject, inputs: Any, contest: Contest, watch: Watch, who: str) -> Spoken:
    return answer_aloud(
        subject,
        inputs,
        max_new_tokens=contest.max_new_tokens,
        hear=lambda text: watch.hear(who, text),
        stop=watch.stop,
    )


def _drawn(subject: Subject, images: Sequence[Image.Image], handle: Handle, layer: int) -> tuple[Image.Image, ...]:
    tokens = handle.visual(layer)[0]
    try:
        return tuple(overlay(subject.seen(one), tokens, n, side=_SIDE) for n, one in enumerate(images))
    except CapabilityError:
        # a family whose layout does not tell: the table stands without pictures
        return ()


def _first_token(asked: _Asked, handle: Handle, label: str) -> PairedTimes:
    def timed() -> dict[str, float]:
        asked.watch.step(asked.share, f"timing {label}, {asked.contest.pairs} interleaved pairs")
        return {"ttft": run_timed(asked.subject, asked.inputs, 1).first}

    def bare() -> dict[str, float]:
        with handle.paused():
            return timed()

    return paired_runs(timed, bare, pairs=asked.contest.pairs, warmup=_WARM_UP, seed=asked.contest.seed)["ttft"]


def _cells(entry: Entry) -> tuple[str, ...]:
    arm = entry.arm
    return (
        arm.plugin + (" (baseline)" if entry.baseline else ""),
        arm.answer,
        "yes" if arm.same_answer else "no",
        f"{entry.loyalty:.3f}",
        f"{arm.n_eq:.1f}",
        f"{arm.prefill_flops_ratio:.2f}",
        f"{arm.kv_bytes_ratio:.2f}",
        "not timed" if arm.time_to_first_token is None else str(arm.time_to_first_token),
    )


def _numbers(entry: Entry) -> dict[str, Any]:
    return asdict(entry.arm) | {"method": entry.method, "baseline": entry.baseline, "loyalty": entry.loyalty}
