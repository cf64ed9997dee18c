"""The ways a model is used: beams, samples, several turns, shared prefixes, assisted decoding, losses, embeddings."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tests.contracts import kit
from tests.contracts.checks import image_tokens
from tests.oracle import Dropped, hidden_columns
from tests.tiny import TinyInputs, row, tiny_inputs, visual_mask
from tests.tiny.batch import TYPE_IDS
from vlm_eff import attach
from vlm_eff.core.errors import CapabilityError
from vlm_eff.core.plugin import Plugin


def several_rows_a_prompt(family: str, plugin: Plugin, rows: tuple[int, ...] = (1, 2), **mode: Any) -> None:
    """Beams or several returned sequences equal the masked run, scores and tokens."""
    model, inputs = kit.model_of(family), tiny_inputs(family, rows)
    repeats = max(mode.get("num_beams", 1), mode.get("num_return_sequences", 1))
    kept = kit.attached(model, inputs, plugin).handle
    torch.manual_seed(3)
    run = kit.attached_generate(model, inputs, plugin, steps=5, **mode)
    torch.manual_seed(3)
    tokens, logits = kit.reference_generate(model, inputs, plugin, kept, 5, repeats, **mode)
    kit.same(run.logits, logits)
    assert torch.equal(run.tokens, tokens)
    torch.manual_seed(3)
    kit.differs(run.logits[:, 0], kit.generate(model, inputs, 1, **mode)[1][:, 0])


def words(rows: int, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, 95, (1, count), generator=generator).expand(rows, -1)


def next_turn(model: Any, inputs: dict[str, Any], family: str, before: int, more: dict[str, Any]) -> dict[str, Any]:
    """Inputs of a later forward on a cache that holds `before` positions; `more` are the new ones."""
    rows, count = inputs["input_ids"].shape[0], more["input_ids"].shape[1]
    mask = more.get("attention_mask", torch.ones_like(more["input_ids"]))
    old = torch.nn.functional.pad(inputs["attention_mask"], (0, before - inputs["attention_mask"].shape[1]), value=1)
    made = dict(more) | {"attention_mask": torch.cat([old, mask.expand(rows, -1)], 1)}
    if family in TYPE_IDS and TYPE_IDS[family] not in made:
        made[TYPE_IDS[family]] = torch.zeros_like(more["input_ids"]) + int(family == "paligemma")
    if family.startswith("qwen"):
        # a plain forward on a cache does not place new tokens by itself
        positions = torch.arange(count).expand(3, rows, -1)
        if "image_grid_thw" in more:
            grids = {name: more[name] for name in ("image_grid_thw", "mm_token_type_ids")}
            positions, _ = model.model.get_rope_index(more["input_ids"], attention_mask=mask, **grids)
        made["position_ids"] = positions + before
    return made


def second_turn_of_text(family: str, plugin: Plugin) -> None:
    """Generate, add a question to the same cache, generate again: both turns equal the masked run."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    gone = kit.dropped(kit.attached(model, inputs, plugin).handle, inputs)

    def talk() -> tuple[Tensor, Tensor]:
        options = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        first = model.generate(**inputs, max_new_tokens=4, **options)
        ids = torch.cat([first.sequences, words(2, 6, 5)], 1)
        turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        turn["attention_mask"][:, : inputs["input_ids"].shape[1]] = inputs["attention_mask"]
        if family in TYPE_IDS:
            name = TYPE_IDS[family]
            kinds = torch.zeros_like(ids) + int(family == "paligemma")
            kinds[:, : inputs[name].shape[1]] = inputs[name]
            turn[name] = kinds
        second = model.generate(**turn, past_key_values=first.past_key_values, max_new_tokens=4, **options)
        return torch.stack([*first.logits, *second.logits], 1), second.sequences

    with attach(model, plugin):
        logits, tokens = talk()
    with hidden_columns(model, gone):
        wanted, wanted_tokens = talk()
    kit.same(logits, wanted)
    assert torch.equal(tokens, wanted_tokens)
    kit.differs(logits, talk()[0])


def second_turn_with_an_image(family: str, plugin: Plugin) -> None:
    """A second image on a cache that lacks tokens of the first: dropped and decoded like the masked run."""
    model, first = kit.model_of(family), tiny_inputs(family, (1, 2))
    later = tiny_inputs(family, (1, 1), text=(6, 6), seed=8)
    length = first["input_ids"].shape[1]
    turn = next_turn(model, first, family, length, later)
    step = next_turn(model, turn, family, length + later["input_ids"].shape[1], {"input_ids": words(2, 1, 4)})

    def talk() -> tuple[list[Tensor], Any]:
        made, cache = [], None
        for inputs in (first, turn, step):
            out = kit.forward(model, inputs, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            made.append(out.logits)
        return made, cache

    with attach(model, plugin) as handle:
        kit.forward(model, first)
        gone = kit.dropped(handle, first)
        logits, _ = talk()
        gone = {k: torch.cat([gone[k], kit.dropped(handle, later)[k]], 1) for k in gone}
    with hidden_columns(model, gone):
        wanted, _ = talk()
    bare, _ = talk()
    left = ~gone[kit.LAYERS - 1][:, length:] & kit.real(later)
    kit.same(logits[1][left], wanted[1][left])
    kit.same(logits[2], wanted[2])
    kit.differs(logits[2], bare[2])
    kit.differs(logits[1][left], bare[1][left])
    assert bool(gone[kit.LAYERS - 1][:, length:].any()), "nothing of the second image was dropped"


def text_after_an_image(family: str, plugin: Plugin) -> None:
    """A request without images after one with images: bit for bit the bare model's answer."""
    model, image, text = kit.model_of(family), tiny_inputs(family, (1, 2)), tiny_inputs(family, (0, 0))
    kit.bare(model, image)
    want, decoded = kit.bare(model, text), kit.generate(model, text, 3)
    with attach(model, plugin):
        kit.generate(model, image, 2)
        assert torch.equal(kit.bare(model, text), want)
        assert torch.equal(kit.generate(model, text, 3)[1], decoded[1])


def prefix_is_reused(family: str, plugin: Plugin) -> None:
    """Two questions on deep copies of one prefilled cache: each equals its own masked run."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    length = inputs["input_ids"].shape[1]
    gone = kit.dropped(kit.attached(model, inputs, plugin).handle, inputs)

    def ask() -> list[Tensor]:
        prefix = kit.forward(model, inputs, use_cache=True).past_key_values
        made = []
        for seed in (1, 2):
            cache = copy.deepcopy(prefix)
            for turn, count in enumerate((5, 1)):
                more = {"input_ids": words(2, count, seed + turn)}
                asked = next_turn(model, inputs, family, length + 5 * turn, more)
                made.append(kit.forward(model, asked, past_key_values=cache, use_cache=True).logits)
        return made

    with attach(model, plugin):
        answers = ask()
    with hidden_columns(model, gone):
        wanted = ask()
    for got, want, bare in zip(answers, wanted, ask(), strict=True):
        kit.same(got, want)
        kit.differs(got, bare)


def prompt_lookup_equals_greedy(family: str, plugin: Plugin, steps: int = 30, least: int = 0) -> None:
    """Assisted decoding gives the tokens of plain greedy decoding, in fewer calls."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1,))
    greedy = kit.attached_generate(model, inputs, plugin, steps=steps)
    with attach(model, plugin) as handle:
        options = {"max_new_tokens": steps, "do_sample": False, "prompt_lookup_num_tokens": 3}
        out = model.generate(**inputs, **options)
    tokens = out[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(tokens, greedy.tokens)
    accepted = steps - handle.stats().calls
    assert accepted >= least, f"{accepted} candidates were accepted"


def candidates_do_not_move_the_choice(family: str, plugin: Plugin) -> None:
    """Candidates that follow the prompt in an assisted prefill are not taken for the question."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1,))
    extra = next_turn(model, inputs, family, inputs["input_ids"].shape[1], {"input_ids": words(1, 3, 9)})
    longer = dict(inputs) | {"attention_mask": extra["attention_mask"]}
    for name in ("input_ids", TYPE_IDS.get(family, "input_ids")):
        longer[name] = torch.cat([inputs[name], extra[name]], 1)
    plain = kit.attached(model, inputs, plugin).handle
    # as assisted decoding calls it: with a cache, for the logits behind the prompt and behind every candidate
    cache = DynamicCache(config=model.config.get_text_config())
    longer_run = kit.attached(model, longer, plugin, past_key_values=cache, logits_to_keep=4).handle
    for layer in range(kit.LAYERS):
        for ask in ("survivors", "attended"):
            want = getattr(plain, ask)(layer)[0].tolist()
            assert getattr(longer_run, ask)(layer)[0].tolist()[: len(want)] == want


def all_logits_drop_the_same(family: str, plugin: Plugin, cached: bool = False) -> None:
    """`logits_to_keep` of the whole prompt is asked for to score it: it must not hide the images, or it must raise."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    want = kit.attached(model, inputs, plugin)
    options = {"past_key_values": DynamicCache(config=model.config.get_text_config())} if cached else {}
    try:
        got = kit.attached(model, inputs, plugin, logits_to_keep=inputs["input_ids"].shape[1], **options)
    except CapabilityError:
        return
    left = kit.survivors(want.handle, inputs)[-1]
    kit.same(got.logits[left], want.logits[left])


def decoding_without_a_cache(family: str, plugin: Plugin) -> None:
    """A method that looks at places alone chooses the same at every step: with and without a cache agree."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    cached = kit.attached_generate(model, inputs, plugin, steps=4)
    without = kit.attached_generate(model, inputs, plugin, steps=4, use_cache=False)
    kit.same(without.logits, cached.logits)
    assert torch.equal(without.tokens, cached.tokens)
    kit.differs(without.logits, kit.generate(model, inputs, 4, use_cache=False)[1])


def as_embeddings(model: Any, inputs: TinyInputs) -> dict[str, Any]:
    """The same prompt with the embeddings of its ids, placeholders too."""
    given = {name: value for name, value in inputs.items() if name != "input_ids"}
    with torch.no_grad():
        given["inputs_embeds"] = model.get_input_embeddings()(inputs["input_ids"])
    return given


def embeddings_instead_of_ids(family: str, plugin: Plugin) -> None:
    """Called with the embeddings of the prompt, dropping equals masking as well."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    given = as_embeddings(model, inputs)
    with attach(model, plugin) as handle:
        got = kit.bare(model, given)
    gone = kit.dropped(handle, inputs)
    left = ~gone[kit.LAYERS - 1] & kit.real(inputs)
    with hidden_columns(model, gone):
        kit.same(got[left], kit.bare(model, given)[left])
    kit.differs(got[left], kit.bare(model, given)[left])


def embeddings_keep_what_ids_keep(family: str, plugin: Plugin) -> None:
    """Placeholders are recognised by their embedding: the same tokens stay as with ids.

    Qwen places tokens on three axes from ids alone: without them the grid is not known, and what goes is spread along
    the order of the tokens.
    """
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    with_ids = kit.attached(model, inputs, plugin).handle
    with attach(model, plugin) as handle:
        kit.forward(model, as_embeddings(model, inputs))
    for layer in range(kit.LAYERS):
        got, want = (one.survivors(layer) for one in (handle, with_ids))
        if not family.startswith("qwen"):
            assert [row.tolist() for row in got] == [row.tolist() for row in want]
    kept = kit.survivors(handle, inputs)[-1]
    gaps = (~kept).long().diff(dim=1).abs().sum(1)
    assert int(gaps.min()) > 4, "what was dropped lies in one block"


def loss_equals_the_masked_loss(family: str, plugin: Plugin) -> None:
    """With labels on the answer alone the loss is the masked run's."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -3:] = inputs["input_ids"][:, -3:]
    with attach(model, plugin) as handle:
        got = kit.forward(model, inputs, labels=labels).loss
        gone = kit.dropped(handle, inputs)
        labels[image_tokens(family, inputs).roll(1, 1)] = 11
        with pytest.raises(CapabilityError, match="label"):
            kit.forward(model, inputs, labels=labels)
    labels = labels.masked_fill(visual_mask(inputs).roll(1, 1), -100)
    assert abs(got - _masked_loss(model, inputs, gone, labels)) < 1e-4 * abs(got)
    assert abs(got - kit.forward(model, inputs, labels=labels).loss) > kit.POWER


def _masked_loss(model: Any, inputs: TinyInputs, gone: Dropped, labels: Tensor) -> Tensor:
    with hidden_columns(model, gone):
        return kit.forward(model, inputs, labels=labels).loss  # type: ignore[no-any-return]


def hidden_states_come_back(family: str, plugin: Plugin) -> None:
    """Asking for hidden states changes no logits, and one tensor a layer comes back."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    with attach(model, plugin) as handle:
        out = kit.forward(model, inputs, output_hidden_states=True)
    assert len(out.hidden_states) == kit.LAYERS + 1
    left = kit.survivors(handle, inputs)[-1]
    kit.same(out.logits[left], kit.reference_logits(model, inputs, plugin, handle)[left])


def hidden_states_are_logical(family: str, plugin: Plugin) -> None:
    """What Hugging Face hands out has full length, and the last hidden state is what the logits were made from."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    with attach(model, plugin) as handle:
        out = kit.forward(model, inputs, output_hidden_states=True)
    assert {states.shape[:2] for states in out.hidden_states} == {inputs["input_ids"].shape}
    left = kit.survivors(handle, inputs)[-1]
    with torch.no_grad():
        kit.same(model.get_output_embeddings()(out.hidden_states[-1])[left], out.logits[left])


def hidden_states_equal_those_of_rows(family: str, plugin: Plugin) -> None:
    """In a batch whose rows keep different tokens every hidden state stands at its own place, as in the row alone."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0))
    real = kit.real(inputs)
    with attach(model, plugin):
        batch = kit.forward(model, inputs, output_hidden_states=True).hidden_states
        for number in range(2):
            alone = kit.forward(model, row(inputs, number), output_hidden_states=True).hidden_states
            for many, one in zip(batch, alone, strict=True):
                kit.same(many[number][real[number]], one[0])


def wrapped_equals_plain(
    family: str, plugin: Plugin, wrap: Callable[[nn.Module], Any], call: Callable[[Any], Any], model: nn.Module
) -> None:
    """A wrapper around a model, attached as it is, equals the masked run of the model inside."""
    inputs = tiny_inputs(family, (1, 2))
    wrapper = wrap(model)
    with attach(wrapper, plugin) as handle:
        got = kit.forward(call(wrapper), inputs).logits
        tokens = call(wrapper).generate(**inputs, max_new_tokens=3, do_sample=False)
        assert tokens.shape[1] == inputs["input_ids"].shape[1] + 3
    left = kit.survivors(handle, inputs)[-1] & kit.real(inputs)
    bare = kit.forward(call(wrapper), inputs).logits
    with hidden_columns(model, kit.dropped(handle, inputs)):  # type: ignore[arg-type]
        kit.same(got[left], kit.forward(call(wrapper), inputs).logits[left])
    kit.differs(got[left], bare[left])
