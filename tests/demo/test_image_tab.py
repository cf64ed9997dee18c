"""The tab "Image" as a visitor meets it, through gradio's own client: no browser, the same handlers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import handle_file
from PIL import Image

import vlm_eff
from tests.demo.conftest import make_client
from vlm_eff.core import registry
from vlm_eff.core.errors import ConfigError
from vlm_eff.core.plugin import BindContext, Plugin, Site
from vlm_eff.core.registry import METHODS, Method
from vlm_eff.demo.page.specs import plugins_of
from vlm_eff.eval.subject import open_image

_ASK = "/ask_image"
_SPEC = "pyramiddrop:keep_ratio=0.5"


@pytest.fixture
def files(desk: Any) -> list[Any]:
    return [handle_file(str(desk.examples[0].path))]


@dataclass(frozen=True)
class Raiser(Plugin):
    """A plugin of a third party that breaks in the middle of the model."""

    name: str = "raiser"
    sites: tuple[Site, ...] = (Site(3),)
    needs: tuple[Any, ...] = ()
    writes: frozenset[Any] = frozenset()

    def bind(self, context: BindContext) -> Raiser:
        return self

    def at(self, site: Site, view: Any) -> None:
        raise ZeroDivisionError("seven by nothing")

    def asked(self, visual_tokens: int, num_layers: int) -> list[float]:
        return [float(visual_tokens)] * num_layers


def test_both_answers_the_pictures_and_the_numbers_come_back(desk: Any, client: Any, files: list[Any]) -> None:
    prompt = desk.examples[0].prompt
    bare, arm, _layer, pictures, why, costs, layers, code, stats, record = client.predict(
        files, prompt, _SPEC, 8, 3, 0, api_name=_ASK
    )
    image = open_image(desk.examples[0].path)
    assert bare == desk.subject.answer(desk.subject.inputs([image], prompt), max_new_tokens=8)
    with vlm_eff.attach(desk.subject.model, vlm_eff.plugin(_SPEC)) as handle:
        assert arm == desk.subject.answer(desk.subject.inputs([image], prompt), max_new_tokens=8)
        report = handle.stats().last
    assert report is not None
    found = json.loads(Path(record).read_text(encoding="utf-8"))
    assert found["stats"]["prefills"][0]["visual_per_layer"] == list(report.visual_per_layer)
    assert set(found["times"]) == {"ttft", "tpot"} and found["times"]["ttft"]["pairs"] == 3
    assert f'plugin("{_SPEC}")' in code and desk.examples[0].prompt in code
    assert "144 -> 72" in stats and "ratios only" in why
    assert len(pictures) == 1 and costs["type"] == layers["type"] == "matplotlib"


def test_answers_stream(client: Any, desk: Any, files: list[Any]) -> None:
    job = client.submit(files, desk.examples[0].prompt, _SPEC, 8, 0, 0, api_name=_ASK)
    last = job.result()
    steps = job.outputs()
    assert len(steps) > 2 and steps[0][0] and not steps[0][1], "the bare answer comes first"
    assert steps[-1][:2] == last[:2]


def test_progress_reaches_the_visitor(client: Any, desk: Any, files: list[Any]) -> None:
    job = client.submit(files, desk.examples[0].prompt, _SPEC, 8, 6, 0, api_name=_ASK)
    seen = set()
    while not job.done():
        for unit in job.status().progress_data or ():
            seen.add(unit.desc)
        time.sleep(0.01)
    assert any("timing, 6 interleaved pairs" in str(desc) for desc in seen), seen


def test_what_whoever_started_the_page_offers_is_taken_by_name(desk: Any) -> None:
    secret = "victor:weights='registers.safetensors'"
    offered = vlm_eff.plugin(_SPEC)
    assert plugins_of(secret, {secret: offered}) == {secret: offered}
    with pytest.raises(ConfigError, match="names a file"):
        plugins_of(secret)


def test_what_cannot_be_done_is_one_sentence(
    refused: Callable[..., str], files: list[Any], tmp_path: Path, desk: Any
) -> None:
    empty, text, cut = tmp_path / "empty.png", tmp_path / "text.png", tmp_path / "cut.jpg"
    empty.write_bytes(b"")
    text.write_text("no picture at all")
    open_image(desk.examples[0].path).save(tmp_path / "whole.jpg")
    cut.write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    for path, words in ((empty, "empty"), (text, "cannot be read as a picture"), (cut, "cannot be read")):
        assert words in refused([handle_file(str(path))], "a?", _SPEC, 8, 0, 0, api_name=_ASK)
    for wrong, words in (
        (([], "a?", _SPEC), "no picture"),
        ((files, "  ", _SPEC), "an empty prompt"),
        ((files, "a?", ""), "no plugin"),
        ((files, "a?", "fastw"), "Did you mean"),
        ((files, "a?", "fastv:keep_ratio=7"), "Accepted"),
        ((files, "a?", "victor:weights='/etc/passwd'"), "names a file"),
        ((files, "a?", "/etc/hosts.json"), "there is no method"),
        ((files, "a?", "fastv\npyramiddrop"), "Accepted"),
    ):
        assert words in refused(*wrong, 8, 0, 0, api_name=_ASK)


def test_no_path_of_the_server_is_opened(address: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 64), "red").save(secret)
    # the client would upload the file first; whoever attacks does not
    said = _raw(address, str(secret))
    assert said.startswith("event: error"), said
    uploaded = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", secret.read_bytes())}).json()[0]
    assert "event: complete" in _raw(address, uploaded), "the same call is answered where somebody uploaded the file"
    for path in (secret, Path("/etc/passwd"), Path(vlm_eff.__file__)):
        found = httpx.get(f"{address}gradio_api/file={path}")
        assert found.status_code in (403, 404)


def _raw(address: str, path: str) -> str:
    file = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}
    call = httpx.post(
        f"{address}gradio_api/call/ask_image", json={"data": [[file], "what color is it?", _SPEC, 8, 0, 0]}
    )
    return httpx.get(f"{address}gradio_api/call/ask_image/{call.json()['event_id']}", timeout=60).text


def test_a_picture_of_forty_megapixels_is_answered(client: Any, tmp_path: Path) -> None:
    Image.new("RGB", (8000, 5000), "blue").save(tmp_path / "large.jpg")
    answer = client.predict(
        [handle_file(str(tmp_path / "large.jpg"))], "what color is it?", _SPEC, 4, 0, 0, api_name=_ASK
    )
    assert answer[0]


def test_a_plugin_that_raises_harms_nobody(
    refused: Callable[..., str], client: Any, desk: Any, files: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "METHODS", METHODS)
    METHODS.add("raiser", Method("raiser", Raiser, "third party", "", ""))
    try:
        before = client.predict(files, desk.examples[0].prompt, _SPEC, 8, 0, 0, api_name=_ASK)[:2]
        said = refused(files, "a?", "raiser", 8, 0, 0, api_name=_ASK)
        assert "ZeroDivisionError: seven by nothing" in said
        assert client.predict(files, desk.examples[0].prompt, _SPEC, 8, 0, 0, api_name=_ASK)[:2] == before
    finally:
        METHODS._values.pop("raiser")


def test_ten_clicks_at_once_give_ten_right_answers(address: str, desk: Any, files: list[Any], tmp_path: Path) -> None:
    visitors = [make_client(address, tmp_path) for _ in range(2)]
    prompt = desk.examples[0].prompt
    specs = [_SPEC if number % 2 else "uniform_grid:keep_ratio=0.1" for number in range(10)]
    jobs = [visitors[n % 2].submit(files, prompt, spec, 8, 0, 0, api_name=_ASK) for n, spec in enumerate(specs)]
    answers = [job.result(timeout=120) for job in jobs]
    assert len({answer[0] for answer in answers}) == 1, "the bare model is never asked with somebody's plugin on it"
    for spec, answer in zip(specs, answers, strict=True):
        assert spec.split(":")[0] in answer[8]
    for visitor in visitors:
        visitor.close()


def test_work_can_be_stopped_and_leaves_the_model_bare(desk: Any, client: Any, files: list[Any]) -> None:
    held = threading.Event()
    with desk.working("somebody else", held):
        job = client.submit(files, desk.examples[0].prompt, _SPEC, 8, 40, 0, api_name=_ASK)
        while not desk._stops.keys() - {"somebody else"}:
            pass
        client.predict(api_name="/stop")
        with pytest.raises(Exception, match="Stopped"):
            job.result(timeout=30)
    assert not desk._stops
    image = open_image(desk.examples[0].path)
    with vlm_eff.attach(desk.subject.model, vlm_eff.plugin("fastv")):
        desk.subject.answer(desk.subject.inputs([image], "a?"), max_new_tokens=1)
