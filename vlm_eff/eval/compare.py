"""One question, asked of the bare model and of the same model with each of several plugins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.handle import Handle
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.report import PrefillReport
from vlm_eff.eval.measure import PairedTimes, paired_times
from vlm_eff.eval.subject import Subject
from vlm_eff.models.attach import attach
from vlm_eff.reference.machine import describe_device


@dataclass(frozen=True)
class Arm:
    """One plugin on one question, relative to the bare model.

    visual_tokens:   tokens entering the language model; n_eq: tokens averaged over its layers, asked and realised
    prefill_flops_ratio, kv_bytes_ratio: with the plugin / bare, decoder only
    time_to_first_token: with the plugin / bare, in pairs; None when nothing was timed
    """

    plugin: str
    answer: str
    same_answer: bool
    visual_tokens: float
    n_eq_asked: float
    n_eq: float
    prefill_flops_ratio: float
    kv_bytes_ratio: float
    time_to_first_token: PairedTimes | None


@dataclass(frozen=True)
class Comparison:
    """One question asked of a model bare and with plugins; `timing` says what the times are good for."""

    model: str
    question: str
    images: int
    bare_answer: str
    arms: tuple[Arm, ...]
    device: str
    timing: str

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self) | {"arms": [asdict(arm) for arm in self.arms]}


def compare(
    subject: Subject,
    images: Sequence[Image.Image],
    question: str,
    plugins: Mapping[str, Plugin],
    *,
    max_new_tokens: int = 16,
    pairs: int = 20,
    warmup: int = 3,
    seed: int = 0,
    watch: Callable[[str, Handle], None] | None = None,
) -> Comparison:
    """Ask one question bare and with each plugin alone.

    plugins: what to compare, by the name to show
    pairs:   timed pairs of (plugin, bare) up to the first new token; 0 times nothing. Both arms live in one process:
             the bare one is the same handle, paused.
    watch:   called after each plugin's answer with its name and handle, before the handle is detached

    Raises:
        ConfigError: no plugin.
        InputError: images or prompt that cannot be used.
    """
    if not plugins:
        raise ConfigError(explain("nothing to compare", "one plugin or more", "Name a plugin, such as fastv"))
    inputs = subject.inputs(images, question)
    bare_answer = subject.answer(inputs, max_new_tokens=max_new_tokens)
    arms = []
    for name, plugin in plugins.items():
        with attach(subject.model, plugin) as handle:
            answer = subject.answer(inputs, max_new_tokens=max_new_tokens)
            report = _last(handle)
            if watch is not None:
                watch(name, handle)
            times = time_first_token(subject, handle, inputs, pairs, warmup, seed) if pairs else None
        arms.append(arm_of(name, answer, bare_answer, report, times))
    return Comparison(
        subject.name,
        question,
        len(images),
        bare_answer,
        tuple(arms),
        describe_device(subject.device),
        timing_label(subject),
    )


def timing_label(subject: Subject) -> str:
    """What times measured on the subject's device are good for."""
    return "CPU, ratios only" if subject.device.type == "cpu" else describe_device(subject.device)


def time_first_token(
    subject: Subject, handle: Handle, inputs: Any, pairs: int, warmup: int = 3, seed: int = 0
) -> PairedTimes:
    """Time to the first token with what the handle carries / bare, in pairs; bare is the same handle, paused."""

    def bare() -> None:
        with handle.paused():
            subject.first_token(inputs)

    return paired_times(lambda: subject.first_token(inputs), bare, pairs=pairs, warmup=warmup, seed=seed)


def _last(handle: Handle) -> PrefillReport:
    report = handle.stats().last
    assert report is not None  # the runtime refuses pictures without placeholders
    return report


def arm_of(name: str, answer: str, bare: str, report: PrefillReport, times: PairedTimes | None) -> Arm:
    """What an answer with a plugin, and the prefill it began with, come to beside the bare answer."""
    return Arm(
        plugin=name,
        answer=answer,
        same_answer=answer == bare,
        visual_tokens=report.visual_tokens,
        n_eq_asked=report.n_eq_asked,
        n_eq=report.n_eq,
        prefill_flops_ratio=report.flops / report.flops_bare,
        kv_bytes_ratio=report.kv_bytes / report.kv_bytes_bare,
        time_to_first_token=times,
    )
