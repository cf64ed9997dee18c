"""What the contract checks share: cached models, attached runs, and the same run by masking alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.blocks_oracle import blocks_by_pair
from tests.extended import with_registers
from tests.oracle import Dropped, bypassed_tokens, decoder_layers, masked_generate, masked_logits
from tests.tiny import TinyInputs, tiny_vlm, visual_layout, visual_mask
from vlm_eff import attach
from vlm_eff.core.handle import Handle
from vlm_eff.core.plugin import Plugin
from vlm_eff.importance.spatial import pooled_grid
from vlm_eff.tokens.reduce.drop import Drop
from vlm_eff.tokens.reduce.pool import AveragePool
from vlm_eff.tokens.sparse_prefill import SparsePrefill

STEPS = 8
LAYERS = 6
# Float32 sums over fewer keys add up in another order: about 1e-7 of a logit's size an addition, carried through six
# sharp layers. The sizes of logits differ between families, so the tolerance follows the largest one.
RELATIVE = 2e-5
POWER = 1e-3


@cache
def model_of(family: str, attn: str = "sdpa", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """One model for all tests of a family: a test that leaves anything behind is itself a failure."""
    return tiny_vlm(family, attn=attn, dtype=dtype, layers=LAYERS)


@dataclass
class Run:
    """An attached run and its handle, which stays readable after detach."""

    handle: Handle
    logits: Tensor
    tokens: Tensor | None = None


def forward(model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
    with torch.no_grad():
        return model(**inputs, **kwargs)


def attached(model: PreTrainedModel, inputs: dict[str, Any], *plugins: Plugin, **kwargs: Any) -> Run:
    """One forward with the plugins on."""
    with attach(model, *plugins) as handle:
        return Run(handle, forward(model, inputs, **kwargs).logits)


def bare(model: PreTrainedModel, inputs: dict[str, Any], **kwargs: Any) -> Tensor:
    logits: Tensor = forward(model, inputs, **kwargs).logits
    return logits


_KNOWN: WeakKeyDictionary[PreTrainedModel, dict[Any, Any]] = WeakKeyDictionary()


def once(ask: Callable[..., Any], model: PreTrainedModel, inputs: dict[str, Any], *more: Any) -> Any:
    """`ask(model, inputs, *more)` of a model that carries no plugin, computed once for all that compare with it."""
    content = (
        (name, value.dtype, value.shape, bytes(value.contiguous().view(torch.uint8).numpy()))
        for name, value in inputs.items()
    )
    key, known = (ask, more, *content), _KNOWN.setdefault(model, {})
    if key not in known:
        known[key] = ask(model, inputs, *more)
    return known[key]


def generate(model: Any, inputs: dict[str, Any], steps: int = STEPS, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Greedy tokens [B, steps] and raw logits [B, steps, V]."""
    return masked_generate(model, inputs, {}, steps, **kwargs)


def attached_generate(
    model: PreTrainedModel, inputs: dict[str, Any], *plugins: Plugin, steps: int = STEPS, **kwargs: Any
) -> Run:
    with attach(model, *plugins) as handle:
        tokens, logits = generate(model, inputs, steps, **kwargs)
    return Run(handle, logits, tokens)


def survivors(handle: Handle, inputs: dict[str, Any], layers: int = LAYERS) -> list[Tensor]:
    """Which positions are still there at each layer, bool [B, S]."""
    made = []
    for layer in range(layers):
        mask = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
        for index, row in enumerate(handle.survivors(layer)):
            mask[index, row] = True
        made.append(mask)
    return made


def bypassed(handle: Handle, inputs: dict[str, Any], layers: int = LAYERS) -> Dropped:
    """Which of the positions that are still there take no part in a layer's attention; layers where all do left out."""
    made = {}
    for layer, mask in enumerate(survivors(handle, inputs, layers)):
        for index, row in enumerate(handle.attended(layer)):
            mask[index, row] = False
        if bool(mask.any()):
            made[layer] = mask
    return made


def dropped(handle: Handle, inputs: dict[str, Any], layers: int = LAYERS) -> Dropped:
    return {layer: ~mask for layer, mask in enumerate(survivors(handle, inputs, layers))}


def real(inputs: dict[str, Any]) -> Tensor:
    """True where a position is no padding."""
    return inputs["attention_mask"].bool()


def same(got: Tensor, want: Tensor, relative: float = RELATIVE) -> None:
    """Assert equality up to rounding, `relative` to the largest wanted value."""
    assert got.isfinite().all(), "not finite"
    scale = float(want.abs().max())
    worst = float((got - want).abs().max())
    assert worst <= relative * scale, f"off by {worst:.2e}, allowed {relative * scale:.2e}"


def differs(got: Tensor, from_: Tensor) -> None:
    """Assert that a run moved at all, so that a plugin that does nothing fails the test."""
    worst = float((got - from_).abs().max())
    assert worst > POWER, f"nothing happened: the attached run is within {worst:.2e} of the bare one"


def reference_logits(model: PreTrainedModel, inputs: TinyInputs, plugin: Plugin, handle: Handle) -> Tensor:
    """The masked run with the survivors of `handle`; pooled tokens are averaged here anew.

    What other merges write is taken over from the attached run: the methods' own tests say what it has to be.
    """
    if isinstance(plugin, SparsePrefill):
        with blocks_by_pair(model, plugin, inputs):
            return bare(model, inputs)
    if plugin.name == "victor":
        with registers(model, inputs, plugin, handle):
            return bare(model, inputs, use_cache=False)
    with pooled(model, inputs, plugin, handle), bypassed_tokens(model, bypassed(handle, inputs)):
        return masked_logits(model, inputs, dropped(handle, inputs))


def reference_generate(
    model: PreTrainedModel,
    inputs: TinyInputs,
    plugin: Plugin,
    handle: Handle,
    steps: int = STEPS,
    repeats: int = 1,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Masked generation with the survivors of `handle`; `repeats`: rows that beams or samples make of one prompt."""
    if isinstance(plugin, SparsePrefill):
        with blocks_by_pair(model, plugin, inputs, repeats=repeats):
            return masked_generate(model, inputs, {}, steps, **kwargs)
    if plugin.name == "victor":
        with registers(model, inputs, plugin, handle, repeats):
            return masked_generate(model, inputs, {}, steps, use_cache=False, **kwargs)
    with pooled(model, inputs, plugin, handle, repeats), bypassed_tokens(model, bypassed(handle, inputs)):
        return masked_generate(model, inputs, dropped(handle, inputs), steps, **kwargs)


def registers(model: PreTrainedModel, inputs: TinyInputs, plugin: Any, handle: Handle, repeats: int = 1) -> Any:
    """The oracle that puts the register vectors of `handle` behind everything else."""
    learned = handle.weights["victor"].registers.detach()
    rows = learned.expand(len(inputs["input_ids"]), -1, -1)
    return with_registers(model, rows, candidates(inputs), plugin.layer, repeats)


def candidates(inputs: TinyInputs) -> Tensor:
    """Bool [B, S]: placeholders that are no newline, from the true layout."""
    mask = visual_mask(inputs).clone()
    for index, cells in enumerate(visual_layout(inputs.family, inputs)):
        mask[index, mask[index].clone()] = torch.tensor([not cell["newline"] for cell in cells], dtype=torch.bool)
    return mask


def pooled(model: PreTrainedModel, inputs: TinyInputs, plugin: Plugin, handle: Handle, repeats: int = 1) -> Any:
    reduce, stages = getattr(plugin, "reduce", None), getattr(plugin, "stages", ())
    if reduce is None or isinstance(reduce, Drop):
        return nullcontext()
    if isinstance(reduce, AveragePool):
        windows = pool_windows(inputs, plugin)
        return _write(model, lambda index, hidden: _means(hidden, windows[index]), stages[0].layer, repeats)
    contents = written(model, inputs, plugin)
    stack = ExitStack()
    for layer, rows in contents.items():
        stack.enter_context(_write(model, partial(_changed, rows), layer, repeats))
    return stack


# of the largest number of a state; a merge that moves a token by less is not told from rounding
_ROUNDING = {torch.float64: 1e-9, torch.float32: 2e-5}


def _changed(rows: list[dict[int, Tensor]], index: int, hidden: Tensor) -> dict[int, Tensor]:
    """What was written at a stage: where a state is not what the masked run has there itself, up to rounding."""
    made, close = {}, _ROUNDING.get(hidden.dtype, 1e-2)
    for seat, state in rows[index].items():
        if float((state - hidden[seat]).abs().max()) > close * float(hidden[seat].abs().max()):
            made[seat] = state
    return made


def _means(hidden: Tensor, windows: list[tuple[int, list[int]]]) -> dict[int, Tensor]:
    return {seat: hidden[members].mean(0) for seat, members in windows}


def written(model: PreTrainedModel, inputs: TinyInputs, plugin: Any) -> dict[int, list[dict[int, Tensor]]]:
    """Of each stage's layer and row: what stands at the visual positions that are left when the stage is done."""
    seen: dict[int, Tensor] = {}
    with attach(model, plugin) as handle:
        sites = [site.layer for site in handle.plugins[0].sites]
        # hooks run in the order of their registration: these see what the runtime hands to the layer
        hooks = [
            decoder_layers(model)[layer].register_forward_pre_hook(
                lambda _, args, layer=layer: seen.__setitem__(layer, args[0])
            )
            for layer in sites
        ]
        forward(model, inputs)
        for hook in hooks:
            hook.remove()
    visual = visual_mask(inputs)
    made: dict[int, list[dict[int, Tensor]]] = {layer: [] for layer in sites}
    for layer in sites:
        for index, kept in enumerate(handle.survivors(layer)):
            # fillers stand in front
            states = seen[layer][index, seen[layer].shape[1] - len(kept) :]
            pairs = zip(kept.tolist(), states, strict=True)
            made[layer].append({position: state for position, state in pairs if visual[index, position]})
    return made


@contextmanager
def _write(
    model: PreTrainedModel, contents: Callable[[int, Tensor], dict[int, Tensor]], layer: int, repeats: int
) -> Iterator[None]:
    """While open, a layer's prefill input holds `contents(row, its hidden states)`: of each position the new state."""

    def write(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if args[0].shape[1] == 1:
            return None
        hidden = args[0].clone()
        for index in range(len(hidden)):
            for seat, state in contents(index // repeats, args[0][index]).items():
                hidden[index, seat] = state
        return (hidden, *args[1:])

    hook = decoder_layers(model)[layer].register_forward_pre_hook(write)
    try:
        yield
    finally:
        hook.remove()


def pool_windows(inputs: TinyInputs, plugin: Any) -> list[list[tuple[int, list[int]]]]:
    """Of each row: (position of the mean, positions averaged), from the true layout."""
    keep = plugin.stages[0].keep
    rows = []
    for cells, mask in zip(visual_layout(inputs.family, inputs), visual_mask(inputs), strict=True):
        tiles: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for cell, position in zip(cells, mask.nonzero()[:, 0].tolist(), strict=True):
            if not cell["newline"]:
                tiles.setdefault((cell["image"], cell["frame_or_tile"]), []).append((position, cell["y"], cell["x"]))
        rows.append([window for tile in tiles.values() for window in _windows(tile, keep)])
    return rows


def _windows(tile: list[tuple[int, int, int]], keep: Any) -> list[tuple[int, list[int]]]:
    height, width = (max(cell[axis] for cell in tile) + 1 for axis in (1, 2))
    rows, columns = pooled_grid(height, width, keep.of_count(len(tile), len(tile)))
    windows: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for cell in tile:
        windows.setdefault((cell[1] * rows // height, cell[2] * columns // width), []).append(cell)
    made = []
    for members in windows.values():
        middle = [Fraction(sum(cell[axis] for cell in members), len(members)) for axis in (1, 2)]
        off = [(cell[1] - middle[0]) ** 2 + (cell[2] - middle[1]) ** 2 for cell in members]
        made.append((members[off.index(min(off))][0], [cell[0] for cell in members]))
    return made


def meet(right: Callable[[int], bool], rounds: int) -> None:
    """Two threads do the same again and again at one time; `right(number)` says whether one got what it should."""
    wrong: list[str] = []
    gate = threading.Barrier(2)

    def work(index: int) -> None:
        gate.wait()
        for _ in range(rounds):
            try:
                if not right(index):
                    wrong.append(f"thread {index}: wrong logits")
            except Exception as error:
                wrong.append(f"thread {index}: {error!r}")

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[0]
