"""One question about pictures: bare, with plugins, and what those left of the pictures at every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from vlm_eff.core.errors import CapabilityError
from vlm_eff.core.handle import Handle
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.report import PrefillReport, Stats
from vlm_eff.demo.work.charts import Pair, layer_bars, pair_bars
from vlm_eff.demo.work.costs import cost_pairs, layer_rows
from vlm_eff.demo.work.watching import Watch
from vlm_eff.eval.compare import timing_label
from vlm_eff.eval.costs.watch import run_timed
from vlm_eff.eval.measure import PairedTimes, paired_runs
from vlm_eff.eval.overlay import overlay
from vlm_eff.eval.streaming import answer_aloud
from vlm_eff.eval.subject import Subject
from vlm_eff.models.attach import attach
from vlm_eff.reference.machine import describe_device

BARE, WITH = "bare", "with plugins"
# tokens of a timed run: enough for a time per token
_TIMED_TOKENS = 5
_WARM_UP = 2


@dataclass(frozen=True)
class Question:
    """What is asked, and of what.

    plugins: attached together, by spec; pairs: timed pairs of (with, bare), 0 times nothing
    seed:    of the order inside the pairs; answers are greedy and have none
    """

    images: tuple[Image.Image, ...]
    prompt: str
    plugins: dict[str, Plugin]
    max_new_tokens: int = 32
    pairs: int = 0
    seed: int = 0

    @property
    def label(self) -> str:
        """The plugins in words."""
        return " + ".join(self.plugins)


@dataclass(frozen=True)
class Looked:
    """A question answered twice.

    kept:  by decoder layer, one picture an image: kept cells clear, gone ones dark; empty with `no_overlay`, the reason
    tower: the same of the end of the vision tower, where plugins act inside it
    times: with the plugins / bare, of "ttft" and "tpot"; empty when nothing was timed
    """

    question: Question
    model: str
    bare: str
    arm: str
    stats: Stats
    kept: tuple[tuple[Image.Image, ...], ...]
    no_overlay: str
    tower: tuple[Image.Image, ...]
    times: dict[str, PairedTimes]
    timing: str
    device: str

    @property
    def report(self) -> PrefillReport:
        """The prefill with plugins."""
        last = self.stats.last
        assert last is not None  # a picture was asked about
        return last

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON: all numbers, no pictures."""
        return {
            "model": self.model,
            "prompt": self.question.prompt,
            "images": len(self.question.images),
            "plugins": {spec: plugin.to_dict() for spec, plugin in self.question.plugins.items()},
            "seed": self.question.seed,
            "answers": {BARE: self.bare, WITH: self.arm},
            "stats": self.stats.to_dict(),
            "times": {name: times.to_dict() for name, times in self.times.items()},
            "timing": self.timing,
            "device": self.device,
        }


def look(subject: Subject, question: Question, watch: Watch) -> Looked:
    """Ask bare, then with the plugins; time both in pairs; draw what is left at every layer.

    Raises:
        InputError: pictures or prompt that cannot be used. Stopped: somebody stopped it.
    """
    watch.step(0.0, "asking the bare model")
    inputs = subject.inputs(question.images, question.prompt)
    bare = answer_aloud(
        subject,
        inputs,
        max_new_tokens=question.max_new_tokens,
        hear=lambda text: watch.hear(BARE, text),
        stop=watch.stop,
    )
    watch.step(0.3, f"asking with {question.label}")
    with attach(subject.model, *question.plugins.values()) as handle:
        arm = answer_aloud(
            subject,
            inputs,
            max_new_tokens=question.max_new_tokens,
            hear=lambda text: watch.hear(WITH, text),
            stop=watch.stop,
        )
        stats = handle.stats()
        watch.step(0.5, "drawing what is left")
        kept, why = pictures_by_layer(subject, question.images, handle)
        tower = tower_pictures(subject, question.images, handle)
        times = _times(subject, handle, inputs, question, watch) if question.pairs else {}
    timing, device = timing_label(subject), describe_device(subject.device)
    return Looked(question, subject.name, bare.text, arm.text, stats, kept, why, tower, times, timing, device)


def pictures_by_layer(
    subject: Subject, images: Sequence[Image.Image], handle: Handle, side: int = 384
) -> tuple[tuple[tuple[Image.Image, ...], ...], str]:
    """What the last call left at each decoder layer, one picture an image; or nothing, and why it cannot be drawn."""
    report = handle.stats().last
    assert report is not None  # a picture was asked about
    made: list[tuple[Image.Image, ...]] = []
    before: tuple[list[bool], list[float]] | None = None
    for layer in range(len(report.visual_per_layer)):
        tokens = handle.visual(layer)[0]
        now = (tokens.kept.tolist(), tokens.weight.tolist())
        if now == before:
            made.append(made[-1])
            continue
        try:
            drawn = tuple(overlay(subject.seen(one), tokens, n, side=side) for n, one in enumerate(images))
        except CapabilityError as error:
            return (), str(error)
        made.append(drawn)
        before = now
    return tuple(made), ""


def tower_pictures(
    subject: Subject, images: Sequence[Image.Image], handle: Handle, side: int = 384
) -> tuple[Image.Image, ...]:
    """What the vision tower computed at its end, one picture an image; nothing where a patch is no visual token.

    In some families the projector joins patches, or an image is several tiles: then there is no picture to draw.
    Behind a tower every token is there again, with the feature of the one that it was merged into.
    """
    stats = handle.stats()
    if not stats.towers:
        return ()
    tower = stats.towers[-1]
    tokens, made, front = handle.visual(0)[0], [], tower.prefix
    groups = handle.tower_groups(len(tower.attended) - 1)
    if len(groups) != len(images):
        return ()
    for number, (image, (group, place)) in enumerate(zip(images, groups, strict=True)):
        here = (tokens.image == number).nonzero().flatten()
        if len(group) - front != len(here):
            return ()
        size = torch.bincount(group[group >= 0], minlength=len(place)).float()
        weight = torch.zeros(len(tokens.slot))
        weight[here] = torch.zeros(len(group)).scatter(0, place, size)[front:]
        drawn = replace(tokens, kept=weight > 0, weight=weight)
        try:
            made.append(overlay(subject.seen(image), drawn, number, side=side))
        except CapabilityError:
            return ()
    return tuple(made)


def _times(subject: Subject, handle: Handle, inputs: Any, question: Question, watch: Watch) -> dict[str, PairedTimes]:
    runs = 2 * (question.pairs + _WARM_UP)
    done = [0]

    def timed() -> dict[str, float]:
        watch.step(0.6 + 0.4 * done[0] / runs, f"timing, {question.pairs} interleaved pairs")
        done[0] += 1
        run = run_timed(subject, inputs, _TIMED_TOKENS)
        assert run.per_token is not None  # several tokens were asked for
        return {"ttft": run.first, "tpot": run.per_token}

    def bare() -> dict[str, float]:
        with handle.paused():
            return timed()

    return paired_runs(timed, bare, pairs=question.pairs, warmup=_WARM_UP, seed=question.seed)


def cost_chart(found: Looked) -> Any:
    """Costs bare and with the plugins: n_eq, FLOPs, bytes of the cache, times where they were measured."""
    pairs = cost_pairs(found.stats)
    names = {"ttft": "first token", "tpot": "next tokens"}
    for name, times in found.times.items():
        # the median of the ratios is what counts; the bars are medians of each arm
        pairs.append(Pair(names[name], "ms", times.second_ms, times.first_ms, f"x {times}"))
    return pair_bars(pairs, found.question.label)


def layers_chart(found: Looked) -> Any:
    """Visual tokens and cache entries of every decoder layer, bare and with the plugins."""
    return layer_bars(layer_rows(found.stats))
