"""The tab "KV cache" as a visitor meets it: handlers through gradio's own client."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import handle_file

import vlm_eff
from vlm_eff.eval.subject import open_image

_ASK = "/ask_kv"
_SPEC = "adakv:keep_ratio=0.3"


def brightness(path: str) -> float:
    return float(np.asarray(open_image(Path(path))).mean())


def test_both_answers_what_heads_keep_and_the_errors_come_back(client: Any, desk: Any) -> None:
    example = desk.examples[0]
    job = client.submit([handle_file(str(example.path))], example.prompt, _SPEC, 8, api_name=_ASK)
    bare, arm, _, _, cells, _, kept, held, errors, stats, record = job.result()
    first = job.outputs()[0]
    assert first[0] and not first[1], "the answer with a full cache comes first"
    inputs = desk.subject.inputs([open_image(example.path)], example.prompt)
    assert bare == desk.subject.answer(inputs, max_new_tokens=8)
    with vlm_eff.attach(desk.subject.model, vlm_eff.plugin(_SPEC)) as handle:
        assert arm == desk.subject.answer(inputs, max_new_tokens=8)
        (report,) = handle.stats().compressions
    found = json.loads(Path(record).read_text(encoding="utf-8"))
    assert [one["stored"] for one in found["bytes"]] and sum(one["stored"] for one in found["bytes"]) == (
        report.bytes_after
    )
    text, visual = (np.asarray(found["kept"][kind]) for kind in ("text", "visual"))
    assert visual.shape == (8, 2) and (visual[:, 0] != visual[:, 1]).any()
    entries = report.modalities[1]
    assert (entries.modality, visual.mean() * 144) == ("image", pytest.approx(entries.after))
    assert text.mean() * 11 == pytest.approx(report.modalities[0].after)
    assert list(found["errors"]["policies"]) == [_SPEC] and "compressed" in stats
    assert {chart["type"] for chart in (kept, held, errors)} == {"matplotlib"}
    one = client.predict(7, "head 0", api_name="/kv_head")[0]
    assert brightness(one) != brightness(cells)
    shown = client.predict(0, "head 1", api_name="/kv_layer")[0]
    assert brightness(shown) != brightness(one)


def test_what_cannot_be_done_is_one_sentence(refused: Callable[..., str], desk: Any, tmp_path: Path) -> None:
    files, prompt = [handle_file(str(desk.examples[0].path))], desk.examples[0].prompt
    text = tmp_path / "text.png"
    text.write_text("no picture", encoding="utf-8")
    for given, word in (
        ((None, prompt, _SPEC, 4), "no picture"),
        (([handle_file(str(text))], prompt, _SPEC, 4), "cannot be read as a picture"),
        ((files, "", _SPEC, 4), "empty prompt"),
        ((files, prompt, "fastv", 4), "acts elsewhere than on the cache"),
        ((files, prompt, "zipvl", 4), "acts elsewhere than on the cache"),
        ((files, prompt, "snapkv\nh2o", 4), "h2o"),
    ):
        assert word in refused(*given, api_name=_ASK)
