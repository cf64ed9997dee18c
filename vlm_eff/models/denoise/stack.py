"""A run of blocks as one: computed, or what it added to its input the last time is predicted and added again."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from torch import Tensor, nn

from vlm_eff.core.denoise import DenoisePlugin, StackSite
from vlm_eff.core.errors import CapabilityError, StateError, explain
from vlm_eff.core.handle import Undo
from vlm_eff.models.denoise.blocks import Block, blocks_of
from vlm_eff.models.denoise.chain import Forward
from vlm_eff.models.denoise.modulation import check_norm, modulated
from vlm_eff.models.denoise.rows import Streams, take_call
from vlm_eff.models.denoise.runtime import DENOISER, DenoiseRuntime
from vlm_eff.models.denoise.state import Unit
from vlm_eff.models.denoise.view import Asked

Values = dict[str, Tensor]


@dataclass
class _Passage:
    """One call of the denoiser on its way through the run.

    asked:    what the plugin said in front of it     since: FLOPs of the call until there
    entry:    streams in front of the group of blocks under way, by name
    left:     rows [K] that are computed although others are predicted
    expected: predicted residuals that were not used yet
    made:     residuals of the groups behind it
    """

    asked: Asked
    since: int
    entry: Values = field(default_factory=dict)
    left: Tensor | None = None
    expected: list[Tensor] = field(default_factory=list)
    made: list[Tensor] = field(default_factory=list)

    @property
    def computes(self) -> bool:
        """Whether all rows are computed."""
        return self.asked.answer is None


class StackDriver:
    """Asks a plugin in front of a run of blocks, once the blocks before it are computed.

    The unit's value is the residual of every stream, out - in, that of the image last. Where blocks of another kind
    follow (Flux2: two streams, then one of both), each group has residuals of its own: it need not be known how the
    model joins the streams.
    What the model adds between blocks (control residuals) is part of them: where the run is skipped, that of the last
    computed step is used.

    Probes: "first", what the blocks in front have added to the stream that is denoised [R, L, D]; "modulated", the
    input of the first block's attention [R, L, D], as the block's own norm makes it.
    """

    def __init__(self, runtime: DenoiseRuntime, site: StackSite, plugin: DenoisePlugin) -> None:
        self._runtime, self._site, self._plugin = runtime, site, plugin

    def install(self, undo: Undo) -> None:
        for name, model in self._runtime.denoising.denoisers.items():
            _Run(self._runtime, self._site, self._plugin, name, blocks_of(model)).install(undo)

    def began(self) -> None:
        """Nothing of a run is kept here."""

    def ended(self) -> None:
        """Nothing of a run is kept here."""


class _Run:
    """The blocks of one denoiser, and their links."""

    def __init__(
        self, runtime: DenoiseRuntime, site: StackSite, plugin: DenoisePlugin, denoiser: str, blocks: list[Block]
    ) -> None:
        self._runtime, self._site, self._plugin = runtime, site, plugin
        self._unit = Unit("", "stack", site.first, len(blocks))
        self._front = blocks[: site.first]
        self._blocks = blocks[site.first : len(blocks) - site.last]
        if not self._blocks:
            raise CapabilityError(
                explain(
                    f"{denoiser} has {len(blocks)} blocks, and {site.first} + {site.last} of them are always computed",
                    "models with more blocks than that",
                    "Use forecast(), which skips the denoiser as a whole",
                )
            )
        if "modulated" in site.looks:
            check_norm(blocks[0])
        groups = [list(group) for _, group in groupby(self._blocks, key=lambda block: block.streams)]
        self._opens = {group[0].index for group in groups}
        self._closes = {group[-1].index for group in groups}
        # where the passages and the probes of a call are kept in its notes
        self._key = ("stack", plugin.name, denoiser)

    def install(self, undo: Undo) -> None:
        for block in {block.index: block for block in (*self._front[:1], *self._front[-1:])}.values():
            self._runtime.chains.around(block.module, self._watching(block), undo, order=DENOISER)
        for block in self._blocks:
            self._runtime.chains.around(block.module, self._passing(block), undo, order=DENOISER)

    # ---------------------------------------------------------------- links

    def _watching(self, block: Block) -> Any:
        """Around the first and the last block in front: what they add."""

        def link(module: nn.Module, inner: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = self._runtime.call
            given = block.given(args, kwargs)
            if call is not None and block is self._front[0]:
                call.notes[*self._key, "before"] = given[block.main]
                call.notes[*self._key, "modulated"] = lambda: modulated(block, given)
            made = inner(*args, **kwargs)
            if call is not None and block is self._front[-1]:
                call.notes[*self._key, "behind"] = block.returned(made)[block.main]
            return made

        return link

    def _passing(self, block: Block) -> Any:
        """Around a block of the run."""

        def link(module: nn.Module, inner: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = self._runtime.call
            if call is None or not self._runtime.active:
                return inner(*args, **kwargs)
            given = block.given(args, kwargs)
            if block is self._blocks[0]:
                call.notes[self._key] = self._begin(block, given)
            passage: _Passage = call.notes[self._key]
            streams = {name: given[name] for name in block.streams if isinstance(given.get(name), Tensor)}
            if block.index in self._opens:
                passage.entry = streams
            if passage.computes:
                made = inner(*args, **kwargs)
                values = block.returned(made) if block.index in self._closes else {}
            else:
                values = self._without(block, inner, passage, given, streams)
                made = None
            if block.index in self._closes:
                values = self._close(block, passage, values)
            if block is self._blocks[-1]:
                self._end(passage)
            return made if made is not None else block.output(values)

        return link

    # ---------------------------------------------------------------- a passage

    def _begin(self, block: Block, given: dict[str, Any]) -> _Passage:
        runtime, call = self._runtime, self._runtime.call
        assert call is not None

        def probe(name: str) -> Tensor:
            if name == "first" and self._front:
                return call.notes[*self._key, "behind"] - call.notes[*self._key, "before"]
            if name == "modulated":
                return call.notes[*self._key, "modulated"]() if self._front else modulated(block, given)
            raise StateError(
                explain(
                    f"{self._plugin.name} asks for {name!r} of a stack",
                    "'modulated', and 'first' where first > 0",
                    "Correct the plugin",
                )
            )

        asked = runtime.ask(self._plugin, self._site, self._unit, given[block.main], probe)
        assert asked is not None
        passage = _Passage(asked, runtime.work.so_far())
        if asked.answer is not None:
            runtime.skip(asked)
            passage.expected = list(asked.answer.value)
            passage.left = None if asked.answer.rows is None else asked.left
        return passage

    def _without(
        self, block: Block, inner: Forward, passage: _Passage, given: dict[str, Any], streams: Values
    ) -> dict[str, Any]:
        """Streams behind a block of which not all rows are computed; those that are not pass by."""
        if passage.left is None:
            return dict(streams)
        rows = passage.asked.inputs.shape[0]
        _, fewer = take_call((), given, passage.left, rows)
        made = block.returned(inner(**fewer))
        values = {name: streams[name].clone() for name in made}
        for name, value in made.items():
            values[name][passage.left] = value
        return dict(values)

    def _close(self, block: Block, passage: _Passage, values: Values) -> Values:
        """Behind the last block of a group: its residuals, and its streams with what was predicted."""
        entry, asked = passage.entry, passage.asked
        if passage.computes:
            names = sorted(values, key=lambda name: name == block.main)
            for name in names:
                _check(block, entry, name, values[name])
                passage.made.append(values[name] - entry[name])
            asked.state.notes[self._kept(block)] = tuple(names)
            return values
        made = {}
        for name in asked.state.notes[self._kept(block)]:
            expected = passage.expected.pop(0)
            predicted = entry[name] + expected
            if asked.answer is not None and asked.answer.rows is not None:
                rows = asked.answer.rows.to(expected.device).view(-1, *[1] * (expected.dim() - 1))
                passage.made.append(expected.where(rows, values[name] - entry[name]))
                predicted = predicted.where(rows, values[name])
            made[name] = predicted
        return made

    def _end(self, passage: _Passage) -> None:
        asked = passage.asked
        if passage.computes:
            self._runtime.work.note(asked.name, passage.since)
        if passage.made:
            self._runtime.keep(asked, Streams(tuple(passage.made)), own=True)

    def _kept(self, block: Block) -> str:
        return f"streams.{block.index}"


def _check(block: Block, entry: Values, name: str, value: Tensor) -> None:
    if name in entry and entry[name].shape == value.shape:
        return
    shape = tuple(entry[name].shape) if name in entry else None
    raise CapabilityError(
        explain(
            f"{name} is {shape} in front of the blocks and {tuple(value.shape)} behind {block.name}",
            "blocks that add to what they are given",
            "Use forecast(), which needs to know nothing of blocks",
        )
    )
