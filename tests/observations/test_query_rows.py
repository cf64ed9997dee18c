"""Several rows of attention at once: equal to the eager matrices, in every family, batch and chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts import kit
from tests.observations.spy import Spy
from tests.oracle import attention_rows
from tests.tiny import FAMILIES, row, tiny_inputs, visual_mask
from vlm_eff import attach
from vlm_eff.core.plugin import LayerInput, Observation, QueryRows
from vlm_eff.kernels.window_scores import fast
from vlm_eff.models import received
from vlm_eff.models.rows import Attended, Rows
from vlm_eff.models.view import View
from vlm_eff.tokens import fastv

ROWS: dict[str, Callable[[View], Rows]] = {
    "text": lambda view: view.text(),
    "visual": lambda view: view.candidates(),
    "all": lambda view: view.prompt.everything(),
}


def look(wanted: Observation, family: str, inputs: Any, see: Callable[[View], Any], layer: int, *others: Any) -> Any:
    """What `see(view)` returns at the input of `layer`."""
    model, seen = kit.model_of(family), []
    with attach(model, *others, Spy(wanted, see, seen, layer)):
        kit.forward(model, inputs)
    return seen[0]


def from_matrix(matrix: Tensor, rows: Rows, reduce: str) -> Tensor:
    """The same reduction of a full matrix [B, H, S, S]."""
    made = []
    for index, (slots, valid) in enumerate(zip(rows.slot, rows.valid, strict=True)):
        picked = matrix[index][:, slots[valid]]
        empty = picked.new_zeros(picked.shape[0], picked.shape[2])
        made.append(empty if not bool(valid.any()) else picked.sum(1) if reduce == "sum" else picked.amax(1))
    return torch.stack(made).float()


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("when", ["inside", "before"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_the_eager_matrix(family: str, when: str, pad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer 1 slides in Gemma 3, layer 2 does not; images look at themselves in both directions there."""
    # two or three rows a chunk, so that chunks end in the middle
    monkeypatch.setattr(fast, "CHUNK", 900)
    monkeypatch.setattr(received, "_PAIRS", 400)
    inputs = tiny_inputs(family, (1, 2, 0), pad=pad)
    for layer in (1, 2):
        matrix = attention_rows(kit.model_of(family, "eager"), inputs, layer)
        for name, reduce in (("text", "sum"), ("visual", "sum"), ("all", "sum"), ("text", "max")):
            wanted = QueryRows(layer, when)

            def see(view: View, name: str = name, reduce: Any = reduce, wanted: QueryRows = wanted) -> Any:
                rows = ROWS[name](view)
                return rows, view.attention(wanted, rows, reduce)

            rows, got = look(wanted, family, inputs, see, layer + (when == "inside"))
            assert int(rows.count[:2].min()) > 1
            want = from_matrix(matrix, rows, reduce)
            torch.testing.assert_close(got.weight, want, atol=1e-4, rtol=1e-4)
            check_looks(got, rows, matrix)
            # what the rows pay to one another: their own columns of the matrix
            paid = want.mean(1).gather(1, rows.slot).masked_fill(~rows.valid, 0.0)
            torch.testing.assert_close(got.to(rows)[0], paid, atol=1e-4, rtol=1e-4)


def check_looks(got: Attended, rows: Rows, matrix: Tensor) -> None:
    """A key counts as seen by as many rows as give it any weight."""
    for index, (slots, valid) in enumerate(zip(rows.slot, rows.valid, strict=True)):
        assert got.looks[index].tolist() == (matrix[index, 0, slots[valid]] > 0).sum(0).tolist()


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_the_survivors_equal_the_masked_matrix(family: str, pad: str) -> None:
    """After a drop the rows are those of a full run in which the dropped keys are hidden."""
    inputs, first, wanted = tiny_inputs(family, (1, 2), pad=pad), fastv(layer=1, keep_ratio=0.4), QueryRows(3)
    run = kit.attached(kit.model_of(family), inputs, first)
    gone = kit.dropped(run.handle, inputs)
    matrix = attention_rows(kit.model_of(family, "eager"), inputs, 3, gone)

    def see(view: View) -> Any:
        rows = view.candidates()
        return rows, view.attention(wanted, rows), view.survivors

    rows, got, survivors = look(wanted, family, inputs, see, 4, first)
    want = from_matrix(matrix, rows, "sum").gather(2, survivors.index[:, None].expand(-1, matrix.shape[1], -1))
    there = survivors.valid[:, None].expand_as(want)
    torch.testing.assert_close(got.weight[there], want[there], atol=1e-4, rtol=1e-4)
    columns = survivors.index.gather(1, got.columns)
    assert torch.equal(columns[rows.valid], rows.slot[rows.valid])
    assert int(got.weight[~there].abs().sum()) == 0


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_what_is_neither_padding_nor_image_nor_a_tag(family: str, pad: str) -> None:
    inputs = tiny_inputs(family, (1, 2, 0), pad=pad)
    where, hidden = look(
        LayerInput(0),
        family,
        inputs,
        lambda view: ((view.text(), view.text("all")), (view.hidden_at(view.text()), view.hidden)),
        0,
    )
    config = kit.model_of(family).config
    named = [config.get_text_config().bos_token_id, config.get_text_config().eos_token_id]
    named += [getattr(config, name, None) for name in ("vision_start_token_id", "vision_end_token_id")]
    named += [getattr(config, name, None) for name in ("boi_token_index", "eoi_token_index")]
    for index, (tokens, image) in enumerate(zip(inputs["input_ids"], visual_mask(inputs), strict=True)):
        real = inputs["attention_mask"][index].bool()
        last = int(image.nonzero().max()) if image.any() else -1
        text = [i for i, token in enumerate(tokens.tolist()) if real[i] and not image[i] and token not in named]
        for rows, want in zip(where, ([i for i in text if i > last], text), strict=True):
            got = rows.slot[index][rows.valid[index]].tolist()
            assert got == want
            assert got
    rows = where[0]
    assert torch.equal(
        hidden[0][rows.valid], hidden[1].gather(1, rows.slot[:, :, None].expand_as(hidden[0]))[rows.valid]
    )


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_an_earlier_input_is_remembered(family: str) -> None:
    """Text at layer 0, asked for behind a drop, is what the decoder was fed."""
    inputs, wanted, fed = tiny_inputs(family, (1, 2)), LayerInput(0), []
    model = kit.model_of(family)
    hook = model.get_decoder().layers[0].register_forward_pre_hook(lambda _, args: fed.append(args[0]))
    rows, got = look(
        wanted, family, inputs, lambda view: (view.text(), view.layer_input(wanted, view.text())), 3, fastv(layer=2)
    )
    hook.remove()
    want = fed[0].gather(1, rows.slot[:, :, None].expand_as(got))
    assert torch.equal(got[rows.valid], want[rows.valid])


@pytest.mark.parametrize("pad", ["left", "right"])
def test_probes_are_the_prompts(pad: str) -> None:
    """Recent ones and random ones; the same alone, in a batch, for every beam, and whatever the global seed."""
    inputs, model, see = (
        tiny_inputs("llava", (1, 2), pad=pad),
        kit.model_of("llava"),
        lambda view: view.probes(0.1, 0.2, 3),
    )
    batch = look(QueryRows(0), "llava", inputs, see, 1)
    width = inputs["input_ids"].shape[1]
    for index in range(2):
        alone = row(inputs, index)
        length = alone["input_ids"].shape[1]
        torch.manual_seed(index)
        single = look(QueryRows(0), "llava", alone, see, 1)
        shift = width - length if pad == "left" else 0
        slots = single.slot[0][single.valid[0]]
        assert (batch.slot[index][batch.valid[index]] - shift).tolist() == slots.tolist()
        recent = -(-length // 10)
        assert slots[-recent:].tolist() == list(range(length - recent, length))
        assert len(slots) == recent + -(-length // 5)
    if pad == "left":
        beams: list[Rows] = []
        with attach(model, Spy(QueryRows(0), see, beams, 1)):
            kit.generate(model, inputs, 2, num_beams=2)
        assert torch.equal(beams[0].slot, batch.slot.repeat_interleave(2, 0))
    other = look(QueryRows(0), "llava", inputs, lambda view: view.probes(0.1, 0.2, 4), 1)
    assert not torch.equal(other.slot, batch.slot)
