"""A question with a full cache and with a compressed one: both answers, what heads keep, what error that makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from vlm_eff.core.errors import InputError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.report import Stats, VisualTokens
from vlm_eff.demo.work.image import BARE, WITH, Question
from vlm_eff.demo.work.strip import strip
from vlm_eff.demo.work.watching import Watch
from vlm_eff.eval.kv_kept import PromptKept, kept_and_errors
from vlm_eff.eval.kv_meter import Result
from vlm_eff.eval.overlay import overlay
from vlm_eff.eval.streaming import answer_aloud
from vlm_eff.eval.subject import Subject
from vlm_eff.models.attach import attach
from vlm_eff.reference.machine import describe_device

# decode steps whose attention is compared
METER_STEPS = 8
_SIDE = 384


@dataclass(frozen=True)
class CacheAsked:
    """A question, answered with a full cache and with a compressed one.

    kept:     what all plugins together leave of the prompt, right behind it
    errors:   of the plugins together, and of each alone where there are several
    tokens:   all visual tokens of the prompt
    pictures: the parts of the images that the model sees
    """

    question: Question
    model: str
    bare: str
    arm: str
    stats: Stats
    kept: PromptKept
    errors: Result
    tokens: VisualTokens = field(repr=False)
    pictures: tuple[Image.Image, ...] = field(repr=False)
    device: str

    @property
    def heads(self) -> int:
        """Key heads."""
        return self.kept.layers[0].bits.shape[0]

    @property
    def layers(self) -> tuple[int, ...]:
        """Decoder layers whose cache can be compressed."""
        return tuple(layer.layer for layer in self.kept.layers)

    def cells(self, layer: int, head: int | None) -> Image.Image:
        """The images side by side, cells clear that a decoder layer stores, darker where they take fewer bits.

        head: a key head, or None for the mean of all

        Raises:
            InputError: no such layer or head.
            CapabilityError: the layout of this family does not tell where its tokens lie.
        """
        if layer not in self.layers or not (head is None or 0 <= head < self.heads):
            accepted = f"layers {', '.join(map(str, self.layers))} and key heads 0 to {self.heads - 1}"
            raise InputError(explain(f"layer {layer}, head {head}", accepted, "Choose one of these"))
        place = self.layers.index(layer)
        tokens, clear = self.kept.cells(self.tokens, place, head)
        bits = self.kept.layers[place].bits if head is None else self.kept.layers[place].bits[head : head + 1]
        panels, labels = [], []
        for number, picture in enumerate(self.pictures):
            panels.append(overlay(picture, tokens, number, side=_SIDE, clear=clear))
            share = float((bits[:, tokens.slot[tokens.image == number]] > 0).float().mean())
            labels.append(f"{share:.0%} of its entries stored")
        return strip(panels, labels)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON: all numbers, no pictures."""
        kept = self.kept
        return {
            "model": self.model,
            "prompt": self.question.prompt,
            "plugins": {spec: plugin.to_dict() for spec, plugin in self.question.plugins.items()},
            "answers": {BARE: self.bare, WITH: self.arm},
            "kept": {kind: kept.share(kind).tolist() for kind in ("text", "visual")},
            "bits": {kind: list(kept.mean_bits(kind)) for kind in ("text", "visual")},
            "bytes": [{"layer": one.layer, "full": one.bytes_bare, "stored": one.bytes} for one in kept.layers],
            "errors": self.errors.to_dict(),
            "stats": self.stats.to_dict(),
            "device": self.device,
        }


def ask_cache(subject: Subject, question: Question, watch: Watch) -> CacheAsked:
    """Ask with a full cache and with all plugins on it, and measure what they do to the attention of the answer.

    Raises:
        InputError: a question or pictures that cannot be used.
        ConfigError: a plugin that acts elsewhere than on the cache.
        CapabilityError, ConflictError: as `attach`.
        Stopped: somebody stopped it.
    """
    watch.step(0.0, "compressing a copy of the cache, and measuring")
    inputs = subject.inputs(question.images, question.prompt)
    # first, because it refuses what cannot be measured
    errors, kept = kept_and_errors(subject.model, inputs, _policies(question), METER_STEPS)
    watch.step(0.4, "asking with a full cache")
    length = question.max_new_tokens
    bare = answer_aloud(
        subject, inputs, max_new_tokens=length, hear=lambda text: watch.hear(BARE, text), stop=watch.stop
    )
    watch.step(0.7, f"asking with {question.label}")
    with attach(subject.model, *question.plugins.values()) as handle:
        arm = answer_aloud(
            subject, inputs, max_new_tokens=length, hear=lambda text: watch.hear(WITH, text), stop=watch.stop
        )
        tokens, stats = handle.visual(0)[0], handle.stats()
    watch.step(0.95, "drawing what is kept")
    pictures, device = tuple(map(subject.seen, question.images)), describe_device(subject.device)
    return CacheAsked(
        question, subject.name, bare.text, arm.text, stats, kept[question.label], errors, tokens, pictures, device
    )


def _policies(question: Question) -> dict[str, tuple[Plugin, ...]]:
    together = {question.label: tuple(question.plugins.values())}
    return together | {spec: (plugin,) for spec, plugin in question.plugins.items()}
