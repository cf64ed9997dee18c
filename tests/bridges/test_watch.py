"""The watch on a model: what it measures, what it lets through, and that a failed run cannot pass for a result."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import vlm_eff
from tests.saved_model import TOKENS
from vlm_eff.core.errors import CapabilityError
from vlm_eff.eval.bridges.watch import RunFailed, Watch, find_module
from vlm_eff.eval.subject import Subject


def ask(subject: Subject, color: str = "red") -> torch.Tensor:
    inputs = subject.inputs([Image.new("RGB", (40, 40), color)], "what color is it?")
    with torch.inference_mode():
        made: torch.Tensor = subject.model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    return made


def watch_of(subject: Subject, spec: str | None, **more: Any) -> Watch:
    more = {"on_error": "raise"} | more
    return Watch(subject.model, [vlm_eff.plugin(spec)] if spec else [], **more)


def test_a_call_is_measured_and_unchanged(subject: Subject, tmp_path: Path) -> None:
    bare = ask(subject)
    watch = watch_of(subject, "divprune:keep_ratio=1.0")
    with watch.judged(1, "test"):
        assert torch.equal(ask(subject), bare)
    watch.close()
    (call,) = watch.calls
    assert call["new_tokens"] == 3 and call["ttft_ms"] > 0 and call["tpot_ms"] > 0
    assert call["visual_tokens"] == call["kept_tokens"] == call["n_eq"] == TOKENS
    assert call["flops_ratio"] == call["kv_bytes_ratio"] == 1
    # closed, the model is as it was
    assert "generate" not in vars(subject.model)
    assert torch.equal(ask(subject), bare) and len(watch.calls) == 1


@pytest.mark.parametrize(
    ("spec", "n_eq", "kv"), [("divprune:keep_ratio=0.5", 0.5, 1), ("snapkv:keep_ratio=0.2", 1, 0.5)]
)
def test_savings_are_those_of_the_plugin(subject: Subject, spec: str, n_eq: float, kv: float, tmp_path: Path) -> None:
    watch = watch_of(subject, spec, record=tmp_path / "costs.json")
    ask(subject)
    ask(subject, "blue")
    watch.write("test")
    watch.close()
    means = watch.means()
    assert means["n_eq"] == n_eq * TOKENS and means["kv_bytes_ratio"] < kv
    assert means["failed_calls"] == 0 and watch.tokens == 6 and watch.seconds > 0
    written = json.loads((tmp_path / "costs.json").read_text())
    assert [len(part["calls"]) for part in written] == [2]


def test_without_plugins_times_are_taken(subject: Subject) -> None:
    watch = watch_of(subject, None)
    ask(subject)
    watch.close()
    assert set(watch.calls[0]) == {"new_tokens", "ttft_ms", "tpot_ms"}


def test_passes_outside_generate_are_counted_too(subject: Subject) -> None:
    watch = watch_of(subject, "divprune:keep_ratio=0.5")
    with watch.judged(0, "loglikelihood"), torch.inference_mode():
        subject.model(**subject.inputs([Image.new("RGB", (40, 40))], "what color is it?"))
    watch.note_passes()
    watch.close()
    assert watch.means()["n_eq"] == TOKENS / 2


def test_a_swallowed_error_fails_the_run(subject: Subject, broken: str) -> None:
    watch = watch_of(subject, broken)

    def harness() -> str:
        try:
            return str(ask(subject))
        except Exception:
            return ""

    # no Exception: harnesses catch those
    assert not issubclass(RunFailed, Exception)
    with pytest.raises(RunFailed, match=r"2 of 2 calls raised.*the plugin is broken"), watch.judged(2, "generate"):
        assert [harness(), harness()] == ["", ""]
    watch.close()


def test_without_the_check_it_would_look_like_empty_answers(
    subject: Subject, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what the test above guards against
    monkeypatch.setattr(Watch, "check", lambda *_, **__: None)
    watch = watch_of(subject, broken)
    with watch.judged(1, "generate"), pytest.raises(ValueError, match="broken"):
        ask(subject)
    watch.close()


def test_an_error_that_comes_through_fails_the_run_too(subject: Subject, broken: str) -> None:
    watch = watch_of(subject, broken)
    with pytest.raises(RunFailed, match="1 of 1"), watch.judged(1, "generate"):
        ask(subject)
    watch.close()


def test_other_errors_of_the_harness_stay_what_they_are(subject: Subject) -> None:
    watch = watch_of(subject, None)
    with pytest.raises(KeyError), watch.judged(1, "generate"):
        raise KeyError("image")
    watch.close()


def test_warn_counts_and_goes_on(subject: Subject, broken: str, caplog: pytest.LogCaptureFixture) -> None:
    watch = watch_of(subject, broken, on_error="warn")
    with watch.judged(1, "generate"), pytest.raises(ValueError, match="broken"):
        ask(subject)
    watch.close()
    assert watch.means() == {"failed_calls": 1.0} and "1 of 1 calls raised" in caplog.text


def test_answers_without_the_model_fail_the_run(subject: Subject) -> None:
    watch = watch_of(subject, "divprune")
    with pytest.raises(RunFailed, match="3 requests were answered without"), watch.judged(3, "generate"):
        pass
    ask(subject)
    watch.close()


def test_calls_past_the_plugins_fail_the_run(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = watch_of(subject, "divprune:keep_ratio=0.5")
    assert watch.handle is not None
    with watch.handle.paused(), pytest.raises(RunFailed, match="1 calls ran past"), watch.judged(1, "generate"):
        ask(subject)
    ask(subject)
    watch.close()


def test_the_module_of_a_backend_is_found() -> None:
    model = torch.nn.Linear(1, 1)
    assert find_module(SimpleNamespace(model=model), "x") is model
    assert find_module(SimpleNamespace(model="gpt", _model=model), "x") is model
    for backend in (SimpleNamespace(model="gpt"), SimpleNamespace(_model=torch.nn.DataParallel(model), model=model)):
        with pytest.raises(CapabilityError):
            find_module(backend, "x")
