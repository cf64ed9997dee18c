"""Attaching, detaching and refusing leave the model exactly as it was."""

import copy
import inspect
import warnings
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from tests.contracts import checks_life as checks
from tests.contracts import kit
from tests.contracts.cases import HARD, HARDEST, METHOD_CASES, VIDEO_METHODS
from tests.contracts.checks_life import Broken, refused
from tests.contracts.snapshot import assert_unchanged, snapshot
from tests.tiny import FAMILIES, TinyInputs, tiny_inputs, tiny_vlm
from vlm_eff import Handle, attach, methods, plugin
from vlm_eff.core.errors import (
    CapabilityError,
    CompiledModelError,
    ConfigError,
    ConflictError,
    InputError,
    UnsupportedModelError,
)
from vlm_eff.core.handle import HandleNeverFired
from vlm_eff.core.plugin import Plugin
from vlm_eff.tokens import (
    fastv,
    feather,
    pyramiddrop,
    random_drop,
    uniform_grid,
)

METHODS = tuple(METHOD_CASES)
FEW = ("llava", "qwen3_vl", "gemma3")


OTHERS = tuple(family for family in FAMILIES if family not in FEW)


def taken_off() -> list[tuple[str, str, str]]:
    """Every method on the few families in both attentions, and in turns on a third of the other families."""
    made = [(family, name, attn) for name in METHODS for family in FEW for attn in ("sdpa", "eager")]
    return made + [(family, name, "sdpa") for place, name in enumerate(METHODS) for family in OTHERS[place % 3 :: 3]]


def test_every_method_and_every_family_is_taken_off() -> None:
    assert {(family, name) for family, name, _ in taken_off()} >= {(family, name) for family in FEW for name in METHODS}
    images = [(family, name) for family, name, _ in taken_off() if name not in VIDEO_METHODS]
    assert all(sum(one == family for one, _ in images) >= 5 for family in FAMILIES)


@pytest.mark.parametrize(("family", "name", "attn"), taken_off())
def test_detach_restores(family: str, name: str, attn: str) -> None:
    checks.detach_restores(family, attn, HARD[name])


@pytest.mark.parametrize("family", FEW)
def test_an_error_in_the_block_restores(family: str) -> None:
    checks.error_in_block_restores(family, HARD["fastv"])


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
@pytest.mark.parametrize("family", FEW)
def test_an_error_in_a_forward_restores(family: str, name: str) -> None:
    checks.error_in_forward_restores(family, HARD[name])


@pytest.mark.parametrize("family", FEW)
def test_an_error_in_a_plugin_restores(family: str) -> None:
    checks.error_in_plugin_restores(family)


def test_detach_may_come_late_twice_and_in_any_order() -> None:
    checks.detach_any_number_of_times("llava", HARD["fastv"])


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FEW)
def test_paused_is_bare(family: str, attn: str) -> None:
    checks.paused_is_bare(family, attn, HARD["fastv"])


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
@pytest.mark.parametrize("family", FEW)
def test_a_deep_copy_is_bare(family: str, name: str) -> None:
    checks.copy_is_bare(family, HARD[name])


def test_two_models_do_not_meet() -> None:
    checks.two_models_do_not_meet("llava", "idefics3", (HARD["fastv"], HARD["feather"]))


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop"])
def test_two_threads_do_not_meet(name: str) -> None:
    checks.threads_do_not_meet("llava", HARD[name])


def test_a_handle_that_never_fired_warns() -> None:
    model = kit.model_of("llava")
    with pytest.warns(HandleNeverFired, match="hooks never ran"), attach(model, fastv()):
        pass
    inputs = tiny_inputs("llava")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kit.attached(model, inputs, fastv())


def test_a_lost_handle_can_not_be_attached_over_silently() -> None:
    """The hooks of a handle nobody holds are still on the model: a second attach must not stack on top of them."""
    model, inputs = tiny_vlm("llava"), tiny_inputs("llava")
    bare = kit.bare(model, inputs)
    attach(model, fastv(layer=1, keep_ratio=0.2))
    with pytest.raises(ConflictError):
        attach(model, random_drop(keep_ratio=0.5))
    kit.differs(kit.bare(model, inputs)[:, -1], bare[:, -1])


# ------------------------------------------------------------------ refusals at attach


def test_a_compiled_wrapper_is_refused() -> None:
    model = kit.model_of("llava")
    wrapper = torch.compile(model, backend="eager")
    before = snapshot(model)
    with pytest.raises(CompiledModelError, match="compiled before attach"):
        attach(wrapper, fastv())
    assert_unchanged(before, model)


@pytest.mark.parametrize("part", ["whole", "decoder", "layer"])
def test_a_model_with_a_compiled_part_is_refused(part: str) -> None:
    model, inputs = tiny_vlm("llava"), tiny_inputs("llava")
    kit.bare(model, inputs)
    decoder = model.get_decoder()
    {"whole": model, "decoder": decoder, "layer": decoder.layers[3]}[part].compile(backend="eager")
    before = snapshot(model)
    with pytest.raises(CompiledModelError, match="compiled before attach"):
        attach(model, fastv())
    assert_unchanged(before, model)


def test_an_unknown_family_is_refused_by_name() -> None:
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **text)).eval()
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match=r"'llama'.*llava.*qwen2_vl"):
        attach(model, fastv())
    assert_unchanged(before, model)


@pytest.mark.parametrize("thing", [None, "llava", 3, [], torch.nn.Linear(2, 2)], ids=lambda thing: type(thing).__name__)
def test_what_is_no_model_is_refused(thing: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="Accepted: "):
        attach(thing, fastv())


REFUSED_AT_ATTACH: dict[str, tuple[type[Exception], str, Any]] = {
    "nothing": (ConfigError, "no plugin", lambda model: attach(model)),
    "no plugin": (ConfigError, "attach was given", lambda model: attach(model, "fastv")),
    "method instead of plugin": (ConfigError, "attach was given", lambda model: attach(model, fastv)),
    "two writers": (ConflictError, "fastv.*pyramiddrop", lambda model: attach(model, fastv(), pyramiddrop())),
    "two entries": (ConflictError, "random_drop.*uniform", lambda model: attach(model, random_drop(), uniform_grid())),
    "layer beyond the decoder": (CapabilityError, "layer 6", lambda model: attach(model, fastv(layer=6))),
    "layers beyond the decoder": (CapabilityError, "layer 9", lambda model: attach(model, pyramiddrop(layers=(2, 9)))),
    "no layer before the first": (CapabilityError, "layer -1", lambda model: attach(model, fastv(layer=0))),
}


@pytest.mark.parametrize("case", REFUSED_AT_ATTACH)
def test_attach_refuses(case: str) -> None:
    error, match, act = REFUSED_AT_ATTACH[case]
    refused("llava", error, match, lambda model, _: act(model))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_reindexed_positions_on_three_axes_are_refused(family: str) -> None:
    plugin = pyramiddrop(positions="reindexed")
    refused(family, CapabilityError, "three axes", lambda model, _: attach(model, plugin))


def test_a_second_attach_is_refused_and_the_first_goes_on() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava")
    with attach(model, HARD["fastv"]):
        on = kit.bare(model, inputs)
        during = snapshot(model)
        with pytest.raises(ConflictError, match="already carries"):
            attach(model, random_drop())
        assert_unchanged(during, model)
        assert torch.equal(kit.bare(model, inputs), on)
    attach(model, random_drop())._undo.run()


def test_training_mode_is_refused() -> None:
    model, inputs = tiny_vlm("llava"), tiny_inputs("llava")
    model.train()
    before = snapshot(model)
    with pytest.raises(CapabilityError, match="training mode"):
        attach(model, fastv())
    assert_unchanged(before, model)
    with attach(model.eval(), fastv()):
        kit.bare(model, inputs)
        with pytest.raises(CapabilityError, match="training mode"):
            kit.bare(model.train(), inputs)


def test_a_plugin_that_cannot_be_bound_leaves_nothing() -> None:
    refused("gemma3", CapabilityError, "layer 7", lambda model, _: attach(model, random_drop(), feather(layers=(1, 7))))


# ------------------------------------------------------------------ refusals in a call


def _call(plugin: Plugin, call: Any) -> Any:
    def act(model: Any, inputs: TinyInputs) -> None:
        with attach(model, plugin):
            call(model, inputs)

    return act


def _static(model: Any, inputs: TinyInputs) -> None:
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=128)
    kit.forward(model, inputs, past_key_values=cache, use_cache=True)


def _no_placeholder(model: Any, inputs: TinyInputs) -> None:
    kit.forward(model, dict(inputs) | {"input_ids": inputs["input_ids"].clamp(max=90)})


def _one_label_too_many(model: Any, inputs: TinyInputs) -> None:
    kit.forward(model, inputs, labels=inputs["input_ids"])


CALLS: dict[str, tuple[type[Exception], str, Any]] = {
    "static cache object": (CapabilityError, "StaticCache", _static),
    "static cache in generate": (
        CapabilityError,
        "StaticCache",
        lambda model, inputs: kit.generate(model, inputs, 2, cache_implementation="static"),
    ),
    "pixels without a placeholder": (InputError, "no visual placeholder", _no_placeholder),
    "chunked prefill": (
        CapabilityError,
        "chunk",
        lambda model, inputs: kit.generate(model, inputs, 2, prefill_chunk_size=8),
    ),
    "labels on image tokens": (CapabilityError, "label", _one_label_too_many),
}


@pytest.mark.parametrize("case", CALLS)
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_a_call_is_refused(family: str, case: str) -> None:
    error, match, call = CALLS[case]
    if case == "static cache in generate":
        # transformers keeps the cache on the model, with and without a plugin
        call(kit.model_of(family), tiny_inputs(family, (1, 2)))
    refused(family, error, match, _call(HARD["fastv"], call))


@pytest.mark.parametrize("where", ["outside the block", "inside the block"])
def test_a_refused_call_does_not_count_as_never_fired(where: str) -> None:
    """The user has seen the error; that the hooks never ran would be untrue."""
    model, inputs = kit.model_of("llava"), tiny_inputs("llava")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if where == "outside the block":
            with pytest.raises(CapabilityError), attach(model, fastv()):
                _static(model, inputs)
        else:
            with attach(model, fastv()), pytest.raises(CapabilityError):
                _static(model, inputs)


# ------------------------------------------------------------------ refusals of values

METHODS_BY_NAME = {name: methods()[name].make for name in METHODS}


def taking(argument: str) -> list[str]:
    """Methods that have this argument."""
    return [name for name, make in METHODS_BY_NAME.items() if argument in inspect.signature(make).parameters]


@pytest.mark.parametrize("ratio", [0, 0.0, 2, -1, True, "x", float("nan"), float("inf"), [0.5]], ids=repr)
@pytest.mark.parametrize("name", taking("keep_ratio"))
def test_a_ratio_that_is_no_fraction_is_refused(name: str, ratio: Any) -> None:
    with pytest.raises(ConfigError, match=r"keep_ratio=.*Accepted: a fraction in \(0, 1\]"):
        METHODS_BY_NAME[name](keep_ratio=ratio)


@pytest.mark.parametrize("count", [0, -3, 1.5, True, "x", None])
@pytest.mark.parametrize("name", taking("keep_count"))
def test_a_count_that_is_no_number_of_tokens_is_refused(name: str, count: Any) -> None:
    if count is None:
        with pytest.raises(ConfigError, match="exactly one of keep_ratio, keep_count"):
            METHODS_BY_NAME[name](keep_ratio=0.5, keep_count=3)
        return
    with pytest.raises(ConfigError, match="keep_count="):
        METHODS_BY_NAME[name](keep_count=count)


@pytest.mark.parametrize("layer", [-1, True, 1.5, "2"], ids=repr)
@pytest.mark.parametrize("name", ["fastv", "random_drop", "uniform_grid", "average_pool", "dart", "vtw"])
def test_a_layer_that_is_no_layer_is_refused(name: str, layer: Any) -> None:
    with pytest.raises(ConfigError, match="layer="):
        METHODS_BY_NAME[name](layer=layer)


@pytest.mark.parametrize("layers", [(3, 2), (2, 2), (), (-1, 2), (1.5, 2), (True, 2), "24", 3], ids=repr)
@pytest.mark.parametrize("name", ["pyramiddrop", "feather", "v2drop", "lazyllm"])
def test_layers_that_do_not_ascend_are_refused(name: str, layers: Any) -> None:
    with pytest.raises(ConfigError, match="layer"):
        METHODS_BY_NAME[name](layers=layers)


@pytest.mark.parametrize("name", taking("positions"))
def test_positions_that_are_no_choice_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="'kept', 'reindexed'"):
        METHODS_BY_NAME[name](positions="compact")


def test_a_mistyped_method_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'pyramiddrop'"):
        plugin("pyramidrop")
    with pytest.raises(ConfigError, match="there is no method 'zzz'"):
        plugin("zzz")


def test_an_unknown_argument_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown \['ratio'\].*layer, keep_ratio, keep_count"):
        plugin("fastv:ratio=0.5")


def test_deep_copied_plugins_are_equal_and_handles_name_them() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava")
    twin = copy.deepcopy(HARDEST)
    assert twin == HARDEST
    with attach(model, twin) as handle:
        assert isinstance(handle, Handle)
        assert "pyramiddrop" in repr(handle)
        assert "attached" in repr(handle)
        kit.bare(model, inputs)
    assert "detached" in repr(handle)
    assert Broken().name == "broken"
