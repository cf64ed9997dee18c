"""Registration in VLMEvalKit, against a stand-in of the few names that it touches.

The stand-in has what the harness has there: `vlmeval.config.supported_VLM`, partials of classes whose objects have
`.model`, `generate(message, dataset)` and `chat`, which catches everything.
"""

import sys
from functools import partial
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from tests.saved_model import TOKENS
from vlm_eff.core.errors import CapabilityError, ConfigError
from vlm_eff.eval.bridges.vlmevalkit import register
from vlm_eff.eval.bridges.watch import RunFailed
from vlm_eff.eval.subject import Subject


class StandIn:
    """A model of VLMEvalKit."""

    def __init__(self, subject: Subject, answer: int = 3, use_vllm: bool = False) -> None:
        self.subject, self.model, self.tokens = subject, subject.model, answer

    def generate(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        picture = Image.new("RGB", (40, 40), message[0]["value"])
        return self.subject.answer(self.subject.inputs([picture], message[1]["value"]), max_new_tokens=self.tokens)

    def chat(self, messages: list[Any], dataset: str | None = None) -> str:
        try:
            return self.generate(messages[-1]["content"], dataset)
        except Exception:
            return "Chat Mode: Failed with all possible conversation turns."


MESSAGE = [{"type": "image", "value": "red"}, {"type": "text", "value": "what color is it?"}]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, subject: Subject) -> dict[str, Any]:
    kit, config = ModuleType("vlmeval"), ModuleType("vlmeval.config")
    config.supported_VLM = {"small": partial(StandIn, subject, answer=2)}
    monkeypatch.setitem(sys.modules, "vlmeval", kit)
    monkeypatch.setitem(sys.modules, "vlmeval.config", config)
    # what is registered at exit would write after the test
    monkeypatch.setattr("atexit.register", lambda *_: None)
    return config.supported_VLM


def test_a_model_with_plugins_stands_beside_its_base(models: dict[str, Any]) -> None:
    bare = models["small"]().generate(MESSAGE)
    name = register("small", "divprune:keep_ratio=1.0")
    assert name == "small+divprune:keep_ratio=1.0" and isinstance(models[name], partial)
    model = models[name](answer=2)
    assert model.generate(MESSAGE, dataset="any") == bare
    assert model.vlm_eff_watch.means()["n_eq"] == TOKENS
    model.vlm_eff_watch.close()
    half = models[register("small", "divprune:keep_ratio=0.5", name="half")]()
    half.generate(MESSAGE)
    assert half.vlm_eff_watch.means()["n_eq"] == TOKENS / 2
    half.vlm_eff_watch.close()


@pytest.mark.parametrize("how", ["generate", "chat"])
def test_a_plugin_that_raises_ends_the_run(models: dict[str, Any], broken: str, how: str) -> None:
    model = models[register("small", broken)]()
    with pytest.raises(RunFailed, match="the plugin is broken"):
        getattr(model, how)(MESSAGE if how == "generate" else [{"role": "user", "content": MESSAGE}])
    model.vlm_eff_watch.close()


def test_warn_lets_the_harness_score_it(models: dict[str, Any], broken: str) -> None:
    model = models[register("small", broken, on_error="warn")]()
    assert model.chat([{"role": "user", "content": MESSAGE}]).startswith("Chat Mode: Failed")
    assert model.vlm_eff_watch.means() == {"failed_calls": 1.0}
    model.vlm_eff_watch.close()


def test_what_is_refused(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (("large", "divprune"), ("small", None), ("small", "nothing_like_it")):
        with pytest.raises(ConfigError):
            register(*arguments)
    name = register("small", "divprune")
    with pytest.raises(ConfigError, match="taken"):
        register("small", "divprune")
    with pytest.raises(RunFailed, match="use_vllm"):
        models[name](use_vllm=True)
    monkeypatch.setitem(sys.modules, "vlmeval.config", None)
    with pytest.raises(CapabilityError, match="ms-vlmeval"):
        register("small", "divprune")
