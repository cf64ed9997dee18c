"""Which tokens stay: every method against its definition, computed from eager attention and the true layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.contracts import definitions, kit
from tests.contracts.checks import image_tokens
from tests.oracle import decoder_layers
from tests.tiny import TinyInputs, tiny_inputs, visual_layout, visual_mask
from vlm_eff import attach
from vlm_eff.models.adapter import adapter_for
from vlm_eff.models.call import Entry, find_spans
from vlm_eff.tokens import fastv, feather, pyramiddrop, random_drop

# every tile stands between text tags of its own, and the library takes each for an image
TILES_ARE_IMAGES = ("idefics3", "smolvlm")


def fastv_keeps_its_definition(family: str, attn: str, layer: int, ratio: float, pad: str = "left") -> None:
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (1, 2, 0), pad=pad)  # type: ignore[arg-type]
    run = kit.attached(model, inputs, fastv(layer=layer, keep_ratio=ratio))
    layers = kit.survivors(run.handle, inputs)
    want = definitions.fastv_set(model, inputs, layer, ratio)
    candidates = image_tokens(family, inputs)
    assert all(bool(mask.all()) for mask in layers[:layer])
    for mask in layers[layer:]:
        assert torch.equal(mask & candidates, want)
    assert bool((candidates & ~want).any())


def pyramiddrop_keeps_its_definition(
    family: str, attn: str, layers: tuple[int, ...], ratio: float, pad: str = "left"
) -> None:
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (1, 2, 0), pad=pad)  # type: ignore[arg-type]
    run = kit.attached(model, inputs, pyramiddrop(keep_ratio=ratio, layers=layers))
    got, candidates = kit.survivors(run.handle, inputs), image_tokens(family, inputs)
    for stage, want in enumerate(definitions.pyramid_sets(model, inputs, layers, ratio)):
        assert torch.equal(got[layers[stage]] & candidates, want), f"stage {stage}"
        counts = [max(int(n * ratio ** (stage + 1)), 1) if n else 0 for n in candidates.sum(1).tolist()]
        assert want.sum(1).tolist() == counts


def feather_keeps_its_definition(
    family: str, attn: str, layers: tuple[int, int], ratio: float, stride: int, pad: str = "left"
) -> None:
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (1, 2, 0), pad=pad)  # type: ignore[arg-type]
    run = kit.attached(model, inputs, feather(keep_ratio=ratio, layers=layers, stride=stride))
    got, candidates = kit.survivors(run.handle, inputs), image_tokens(family, inputs)
    assert bool((got[layers[0]] | ~definitions.grid(inputs, stride)).all()), "the grid is not kept"
    for layer, want in zip(layers, definitions.feather_sets(model, inputs, layers, ratio, stride), strict=True):
        assert torch.equal(got[layer] & candidates, want), f"layer {layer}"
    assert bool((candidates & ~got[-1]).any())


def feather_ignores_positions(family: str = "llava") -> None:
    """FEATHER's first score does not see the positions; FastV's on the same prompt does."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1,))
    length = inputs["input_ids"].shape[1]
    shuffled = torch.randperm(length, generator=torch.Generator().manual_seed(1))[None]
    kept: dict[str, list[list[int]]] = {}
    for plugin in (feather(layers=(1, 3)), fastv(layer=1, keep_ratio=0.3)):
        for positions in (torch.arange(length)[None], shuffled):
            run = kit.attached(model, inputs, plugin, position_ids=positions)
            kept.setdefault(plugin.name, []).append(run.handle.survivors(1)[0].tolist())
    assert kept["feather"][0] == kept["feather"][1]
    assert kept["fastv"][0] != kept["fastv"][1]


def pooling_keeps_seats(family: str, plugin: Any, video: bool | str = False) -> None:
    """A window's mean stands at its most central token, and every image token is in exactly one window."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0), video=video)  # type: ignore[arg-type]
    run = kit.attached(model, inputs, plugin)
    candidates = image_tokens(family, inputs)
    got = kit.survivors(run.handle, inputs)[plugin.stages[0].layer] & candidates
    for index, windows in enumerate(kit.pool_windows(inputs, plugin)):
        assert got[index].nonzero()[:, 0].tolist() == sorted(seat for seat, _ in windows)
        members = sorted(position for _, inside in windows for position in inside)
        assert members == candidates[index].nonzero()[:, 0].tolist()


def spans_are_the_true_layout(family: str, rows: tuple[int, ...], video: bool | str = False, pad: str = "left") -> None:
    """Image, tile or frame, row and column of every candidate, and no newline among them."""
    model, inputs = kit.model_of(family), tiny_inputs(family, rows, video=video, pad=pad)  # type: ignore[arg-type]
    got, want = found_cells(model, inputs), true_cells(inputs)
    assert got == want


def close_frames_are_told_apart() -> None:
    """A densely sampled Qwen2.5 video: two frames a time position, each with a grid of its own."""
    model, inputs = kit.model_of("qwen2_5_vl"), tiny_inputs("qwen2_5_vl", (1,), video=True)
    inputs["second_per_grid_ts"] = torch.tensor([0.1])
    assert found_cells(model, inputs) == true_cells(inputs)


def found_cells(model: Any, inputs: TinyInputs) -> list[list[tuple[int, ...]]]:
    """What the library finds, as (slot, image, group, y, x) of each candidate of each row."""
    seen: dict[str, Any] = {}
    hook = model.get_decoder().register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    kit.forward(model, inputs)
    hook.remove()
    entry = Entry(None, ids=inputs["input_ids"], mask=inputs["attention_mask"])
    spans = find_spans(adapter_for(model), entry, seen["inputs_embeds"], seen.get("position_ids"))
    if spans is None:
        return [[] for _ in inputs["input_ids"]]
    columns = [column.tolist() for column in (spans.slot, spans.image, spans.group, spans.y, spans.x)]
    counts = spans.count.tolist()
    return [
        [tuple(column[row][place] for column in columns) for place in range(count)] for row, count in enumerate(counts)
    ]


def true_cells(inputs: TinyInputs) -> list[list[tuple[int, ...]]]:
    rows = []
    for cells, mask in zip(visual_layout(inputs.family, inputs), visual_mask(inputs), strict=True):
        groups: dict[tuple[int, int], int] = {}
        made = []
        for position, cell in zip(mask.nonzero()[:, 0].tolist(), cells, strict=True):
            if not cell["newline"]:
                group = groups.setdefault((cell["image"], cell["frame_or_tile"]), len(groups))
                image = group if inputs.family in TILES_ARE_IMAGES else cell["image"]
                made.append((position, image, group, cell["y"], cell["x"]))
        rows.append(made)
    return rows


def random_choice_is_the_prompts(family: str) -> None:
    """One seed and prompt give one set, another seed another one; the global random state is not read or moved."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    sets = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 7)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        run = kit.attached(model, inputs, random_drop(seed=seed))
        assert torch.equal(torch.get_rng_state(), before), "the global random state moved"
        sets.append([row.tolist() for row in run.handle.survivors(0)])
    assert sets[0] == sets[1]
    assert sets[0] != sets[2]


def beams_share_one_choice(family: str) -> None:
    """All beams of a prompt draw the same random set, so that reordering the cache mixes nothing."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    with attach(model, random_drop(layer=1)) as handle:
        kit.generate(model, inputs, 3, num_beams=3)
    kept = [row.tolist() for row in handle.survivors(1)]
    assert kept[0] == kept[1] == kept[2]
    assert kept[3] == kept[4] == kept[5]
    alone = kit.attached(model, inputs, random_drop(layer=1)).handle.survivors(1)
    assert [kept[0], kept[3]] == [row.tolist() for row in alone]


def entry_embeds(model: Any, inputs: TinyInputs) -> Tensor:
    """What the decoder is fed [B, S, D]."""
    seen: dict[str, Tensor] = {}
    hook = model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(embeds=kwargs["inputs_embeds"]), with_kwargs=True
    )
    kit.forward(model, inputs)
    hook.remove()
    return seen["embeds"]


def reindexed_entry_equals_a_shorter_prompt(plugin: Any, rows: tuple[int, ...] = (1, 2)) -> None:
    """Dropping before layer 0 with new numbers is feeding the text model the shorter embeddings (LLaVA)."""
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", rows)
    run = kit.attached_generate(model, inputs, plugin)
    prefill = kit.attached(model, inputs, plugin)
    embeds, kept = entry_embeds(model, inputs), prefill.handle.survivors(0)
    for index in range(len(rows)):
        inside = kept[index][inputs["attention_mask"][index, kept[index]].bool()]
        short = {"inputs_embeds": embeds[index : index + 1, inside]}
        short["attention_mask"] = torch.ones(1, len(inside), dtype=torch.long)
        kit.same(prefill.logits[index, inside], kit.bare(model, short)[0])
        out = model.generate(
            **short, max_new_tokens=kit.STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        kit.same(run.logits[index], torch.stack(out.logits, 1)[0])
        assert len(inside) < int(inputs["attention_mask"][index].sum())


def reindexed_pyramid_equals_the_official_loop() -> None:
    """PyramidDrop as published: its sets, prefill and decoding, from a plain loop over the layers (LLaVA)."""
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    plan = {1: 0.7, 3: 0.7**2, 4: 0.7**3}
    plugin = pyramiddrop(keep_ratio=0.7, layers=tuple(plan), positions="reindexed")
    run = kit.attached_generate(model, inputs, plugin)
    prefill = kit.attached(model, inputs, plugin)
    ids = torch.cat([inputs["input_ids"], run.tokens[:, :-1]], 1)  # type: ignore[index]
    with torch.no_grad():
        logits, left = definitions.official_pyramid(model, ids, entry_embeds(model, inputs), plan, visual_mask(inputs))
    length = inputs["input_ids"].shape[1]
    for layer in range(len(decoder_layers(model))):
        assert prefill.handle.survivors(layer)[0].tolist() == left[layer][left[layer] < length].tolist()
    kit.same(run.logits[0], logits[0, -kit.STEPS :])
    kit.same(prefill.logits[0, left[-1][left[-1] < length]], logits[0, : -kit.STEPS + 1])
    kept = kit.attached(model, inputs, pyramiddrop(keep_ratio=0.7, layers=tuple(plan)))
    kit.differs(prefill.logits[:, -1], kept.logits[:, -1])
