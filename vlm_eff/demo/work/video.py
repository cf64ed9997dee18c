"""A clip asked bare and with plugins: both answers, and which visual tokens of which frame are left at each layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

from vlm_eff.core.handle import Handle
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.report import PrefillReport, Stats, VisualTokens
from vlm_eff.demo.work.charts import COLOUR
from vlm_eff.demo.work.clips import Chosen
from vlm_eff.demo.work.image import BARE, WITH
from vlm_eff.demo.work.strip import strip
from vlm_eff.demo.work.watching import Watch
from vlm_eff.eval.figure import blank_figure
from vlm_eff.eval.overlay import fitted, overlay
from vlm_eff.eval.runs.asking import as_pictures
from vlm_eff.eval.streaming import answer_aloud
from vlm_eff.eval.subject import Row, Subject
from vlm_eff.models.attach import attach
from vlm_eff.reference.machine import describe_device

_SIDE = 160


@dataclass(frozen=True)
class ClipQuestion:
    """What is asked, and of which frames.

    plugins: attached together, by spec
    """

    chosen: Chosen
    prompt: str
    plugins: dict[str, Plugin]
    max_new_tokens: int = 32

    @property
    def label(self) -> str:
        """The plugins in words."""
        return " + ".join(self.plugins)


@dataclass(frozen=True)
class FramesKept:
    """Which visual tokens of a clip each decoder layer still has.

    pictures: one a panel: a frame, or the first of the frames that share their tokens
    seconds:  [panels] when it is shown
    where:    [panels] number of the image or video in the row, and of the frame in the row, of its tokens
    tokens:   [layers] all visual tokens of the clip, and which of them are left
    """

    pictures: tuple[Image.Image, ...] = field(repr=False)
    seconds: tuple[float, ...]
    where: tuple[tuple[int, int | None], ...]
    tokens: tuple[VisualTokens, ...] = field(repr=False)

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return len(self.tokens)

    def shares(self, layer: int) -> tuple[float, ...]:
        """Share of the tokens of each panel that is left at `layer`."""
        tokens = self.tokens[layer]
        return tuple(float(tokens.kept[_of(tokens, *place)].float().mean()) for place in self.where)

    def strip(self, layer: int) -> Image.Image:
        """The panels with kept tokens clear and dropped ones dark, each with its time and share.

        Raises:
            CapabilityError: the layout of this family does not tell where its tokens lie.
        """
        panels = [
            overlay(picture, self.tokens[layer], number, group=group, side=_SIDE)
            for picture, (number, group) in zip(self.pictures, self.where, strict=True)
        ]
        shares = zip(self.seconds, self.shares(layer), strict=True)
        return strip(panels, [f"{seconds:.2f} s: {share:.0%} left" for seconds, share in shares])

    def plain_strip(self) -> Image.Image:
        """The panels as they are, for families that do not tell where tokens lie."""
        return plain_strip(self.pictures, self.seconds)

    def chart(self, layer: int) -> Any:
        """Share of the tokens of each panel that is left at `layer`, as bars."""
        figure = blank_figure(8.4, 2.2)
        axes = figure.subplots()
        shares = self.shares(layer)
        axes.bar(range(len(shares)), shares, color=COLOUR, width=0.7)
        axes.set_xticks(range(len(shares)), [f"{seconds:.2f}" for seconds in self.seconds])
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(lambda share, place: f"{share:.0%}")
        axes.tick_params(labelsize=8)
        axes.set_xlabel("seconds from the first frame", fontsize=8)
        axes.set_ylabel(f"left at layer {layer}", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        return figure


@dataclass(frozen=True)
class ClipAsked:
    """A question about a clip, answered bare and with plugins.

    shown_as: "video", or "pictures" for a model that takes no videos
    """

    question: ClipQuestion
    model: str
    shown_as: str
    bare: str
    arm: str
    stats: Stats
    frames: FramesKept
    device: str

    @property
    def report(self) -> PrefillReport:
        """The prefill with plugins."""
        last = self.stats.last
        assert last is not None  # a clip was asked about
        return last

    @property
    def said(self) -> str:
        """Which frames were shown, how, and where."""
        frames, panels = len(self.question.chosen.clip.indices), len(self.frames.pictures)
        shared = f" {frames} frames make {panels} panels: those that share their tokens." if panels < frames else ""
        tower = f" Inside the vision {' '.join(self.stats.towers[-1].line().split())}." if self.stats.towers else ""
        return f"{self.question.chosen.said}; shown as {self.shown_as}.{shared}{tower} {self.device}."

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON: all numbers, no pictures."""
        clip, frames = self.question.chosen.clip, self.frames
        return {
            "model": self.model,
            "prompt": self.question.prompt,
            "frames": {"indices": list(clip.indices), "seconds": list(clip.timestamps), "of": clip.total},
            "shown_as": self.shown_as,
            "plugins": {spec: plugin.to_dict() for spec, plugin in self.question.plugins.items()},
            "answers": {BARE: self.bare, WITH: self.arm},
            "left_by_layer_and_panel": [list(frames.shares(layer)) for layer in range(frames.layers)],
            "stats": self.stats.to_dict(),
            "device": self.device,
        }


def ask_clip(subject: Subject, question: ClipQuestion, watch: Watch) -> ClipAsked:
    """Ask about a clip bare, then with all plugins together.

    A model that takes no videos is shown the frames as pictures, in their order.

    Raises:
        InputError: an empty question, or one with placeholders.
        ConfigError, CapabilityError, ConflictError: as `attach`.
        Stopped: somebody stopped it.
    """
    watch.step(0.0, "asking the bare model")
    clip, length = question.chosen.clip, question.max_new_tokens
    shown = (clip,) if subject.watches else tuple(as_pictures(clip))
    inputs = subject.batch([Row(shown, question.prompt)])
    bare = answer_aloud(
        subject, inputs, max_new_tokens=length, hear=lambda text: watch.hear(BARE, text), stop=watch.stop
    )
    watch.step(0.5, f"asking with {question.label}")
    with attach(subject.model, *question.plugins.values()) as handle:
        arm = answer_aloud(
            subject, inputs, max_new_tokens=length, hear=lambda text: watch.hear(WITH, text), stop=watch.stop
        )
        stats = handle.stats()
        frames = _kept(subject, question, handle)
    watch.step(0.95, "drawing what is left")
    shown_as, device = "video" if subject.watches else "pictures", describe_device(subject.device)
    return ClipAsked(question, subject.name, shown_as, bare.text, arm.text, stats, frames, device)


def plain_strip(pictures: tuple[Image.Image, ...], seconds: tuple[float, ...]) -> Image.Image:
    """Frames side by side, each with its time."""
    return strip([fitted(picture, _SIDE) for picture in pictures], [f"{one:.2f} s" for one in seconds])


def _kept(subject: Subject, question: ClipQuestion, handle: Handle) -> FramesKept:
    last = handle.stats().last
    assert last is not None  # a clip was asked about
    tokens: list[VisualTokens] = []
    for layer in range(len(last.visual_per_layer)):
        now = handle.visual(layer)[0]
        # a page holds this as long as its visitor stays: layers that see the same share it
        same = tokens and tokens[-1].kept.equal(now.kept) and tokens[-1].weight.equal(now.weight)
        tokens.append(tokens[-1] if same else now)
    pictures = tuple(as_pictures(question.chosen.clip))
    where: list[tuple[int, int | None]]
    if subject.watches:
        where = sorted(set(zip(tokens[0].image.tolist(), tokens[0].group.tolist(), strict=True)))
    else:
        where = [(number, None) for number in range(len(pictures))]
        pictures = tuple(subject.seen(picture) for picture in pictures)
    # in some families two frames share their tokens
    every = -(-len(pictures) // len(where))
    first = [min(place * every, len(pictures) - 1) for place in range(len(where))]
    seconds = question.chosen.clip.timestamps
    return FramesKept(
        tuple(pictures[place] for place in first), tuple(seconds[place] for place in first), tuple(where), tuple(tokens)
    )


def _of(tokens: VisualTokens, number: int, group: int | None) -> Tensor:
    """Which tokens are those of one panel."""
    here = tokens.image == number
    return here if group is None else here & (tokens.group == group)
