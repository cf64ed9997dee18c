"""Files shaped as lmms-eval 0.7.3 and VLMEvalKit (ms-vlmeval 0.0.20) write them, read as runs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import vlm_eff
from vlm_eff.cli import app
from vlm_eff.core.errors import InputError, VlmEffError
from vlm_eff.eval.bridges.imports import import_runs
from vlm_eff.eval.bridges.lmms_samples import read_lmms
from vlm_eff.eval.bridges.vlmevalkit_predictions import read_vlmevalkit
from vlm_eff.eval.runs.folder import Run, read_run
from vlm_eff.eval.stats.baselines import is_bare
from vlm_eff.eval.stats.comparable import comparable

DATE = "20261123_002704"
SPEC = "fastv:keep_ratio=0.5,layer=1"
LINES: list[dict[str, Any]] = [
    {
        "doc_id": 0,
        "target": "triangle",
        "filtered_resps": "triangle",
        "token_counts": [{"output_tokens": 2}],
        "doc_hash": "74234e98",
        "input_media": ["/data/test/images/0.png"],
        "exact_match": 1.0,
        "input": "what is the red shape?",
    },
    # the filter changed it, a backend that counts nothing, no picture told
    {
        "doc_id": 1,
        "target": "no",
        "resps": [" Yes. "],
        "filtered_resps": "yes",
        "token_counts": [None],
        "exact_match": 0.0,
        "input": "is it red?",
    },
    # an empty answer that the metric took for right, as that of MVBench does
    {"doc_id": 2, "target": "no", "filtered_resps": "", "exact_match": 1.0, "input": "is it blue?"},
]
RESULTS = {
    "config": {
        "model": "vlm_eff",
        "model_args": f"base=llava_hf,pretrained=models/small,plugin={SPEC.replace(',', ';')}",
        "batch_size": "1",
        "device": "cpu",
        "limit": 3.0,
        "torch_seed": 1234,
    },
    "configs": {"shapes": {"generation_kwargs": {"max_new_tokens": 4}, "metadata": [{"version": 1.0}]}},
    "versions": {"shapes": "Yaml"},
    "model_name": "models/small",
    "lmms_eval_version": "0.7.3",
    "date": DATE,
    "throughput": {"avg_n_eq": 81.0, "total_gen_tokens": 6},
}


def lmms_file(folder: Path, lines: list[dict[str, Any]], results: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{DATE}_samples_shapes.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if results:
        (folder / f"{DATE}_results.json").write_text(json.dumps(results))
    return path


def test_lmms_samples(tmp_path: Path) -> None:
    (run,) = import_runs([lmms_file(tmp_path / "logs", LINES, RESULTS)], tmp_path / "run", read_lmms)
    assert run == read_run(tmp_path / "run") and run.finished
    header = run.header
    assert header.task | {"digest": "", "imported": {}} == {
        "name": "lmms-eval:shapes",
        "version": "1.0",
        "metric": "lmms-eval:exact_match",
        "max_new_tokens": 4,
        "sampling": None,
        "items": 3,
        "digest": "",
        "imported": {},
    }
    assert (header.model, header.label, header.date, header.device) == ("models/small", SPEC, "2026-11-23", "cpu")
    assert header.plugins == [vlm_eff.plugin(SPEC).to_dict()]
    settings, imported = header.settings, header.task["imported"]
    assert settings["imported_from"] == "lmms-eval" and header.packages == {"lmms-eval": "0.7.3"}
    assert settings["seed"] == 1234 and settings["arguments"] == ["pretrained=models/small"]
    assert imported["not_told"] == ["attention", "dtype", "threads", "video_as"]
    assert (imported["means"], imported["empty_scored_wrong"]) == ({"n_eq": 81.0}, 1)
    first, second, third = run.samples.values()
    assert (first.id, first.prompt, first.answer, first.score) == ("0", "what is the red shape?", "triangle", 1.0)
    assert (first.new_tokens, first.media, first.cluster) == (2, [{"file": "images/0.png"}], "images/0.png")
    assert (second.answer, second.parsed, second.score, second.new_tokens) == (" Yes. ", "yes", 0.0, 0)
    assert (third.score, third.status, third.parsed) == (0.0, "empty", None)


def test_bare_and_plugin_runs_pair(tmp_path: Path) -> None:
    bare = RESULTS | {"config": RESULTS["config"] | {"model": "llava_hf", "model_args": "pretrained=models/small"}}  # type: ignore[operator]
    (one,) = import_runs([lmms_file(tmp_path / "a", LINES, RESULTS)], tmp_path / "one", read_lmms)
    (two,) = import_runs([lmms_file(tmp_path / "b", LINES, bare)], tmp_path / "two", read_lmms)
    assert two.header.label == "bare" and two.header.plugins == []
    comparable(one, two)
    assert is_bare(two.header) and not is_bare(one.header)
    changed = [LINES[0] | {"input": "what is the blue shape?"}, *LINES[1:]]
    (three,) = import_runs([lmms_file(tmp_path / "c", changed, bare)], tmp_path / "three", read_lmms)
    with pytest.raises(InputError, match="prompts differ"):
        comparable(three, two)
    other = RESULTS | {"config": bare["config"] | {"model_args": "pretrained=models/small,dtype=float16"}}  # type: ignore[operator]
    (four,) = import_runs([lmms_file(tmp_path / "d", LINES, other)], tmp_path / "four", read_lmms)
    with pytest.raises(InputError, match="arguments"):
        comparable(four, two)


def test_without_results_what_is_missing_is_said(tmp_path: Path) -> None:
    path = lmms_file(tmp_path / "logs", LINES[1:])
    (run,) = import_runs([path], tmp_path / "run", lambda one: read_lmms(one, label="theirs", model="m"))
    assert (run.header.model, run.header.label, run.header.device) == ("m", "theirs", "not told")
    assert {"new_tokens", "seed", "batch_size"} <= set(run.header.task["imported"]["not_told"])
    # with no plugin it would pass for the bare model
    assert run.header.plugins == [{"method": "theirs"}]


def test_a_metric_may_lie_in_a_dict(tmp_path: Path) -> None:
    line = {name: value for name, value in LINES[0].items() if name != "exact_match"}
    rows = [line | {"mme_score": {"score": 1.0, "category": "color"}, "other": {"score": 0}}]
    path = lmms_file(tmp_path / "logs", rows)
    with pytest.raises(InputError, match=r"mme_score\.score"):
        read_lmms(path)
    source, lines = read_lmms(path, "mme_score.score")
    assert (source.metric, lines[0].value) == ("mme_score.score", 1.0)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"exact_match": 37.5}, "from 0 to 1"),
        ({"exact_match": float("nan")}, "from 0 to 1"),
        ({"filtered_resps": [[-1.5, False], [-0.2, True]]}, "no text"),
        ({"doc_id": 1}, "twice"),
    ],
)
def test_lines_that_cannot_be_compared(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    path = lmms_file(tmp_path / "logs", [LINES[0] | change, LINES[1]])
    with pytest.raises(InputError, match=word):
        import_runs([path], tmp_path / "run", lambda one: read_lmms(one, "exact_match"))
    assert not (tmp_path / "run" / "run.json").exists()


ROWS: list[dict[str, Any]] = [
    {"index": 0, "question": "which?", "A": "cat", "B": "dog", "answer": "A", "prediction": "A.", "hit": 1},
    {"index": 1, "question": "which?", "A": "cat", "B": "dog", "answer": "B", "prediction": "A", "hit": 0},
    {
        "index": 2,
        "question": "q",
        "A": "",
        "B": "",
        "answer": "B",
        "prediction": "Failed to obtain answer: x",
        "hit": 1,
    },
]
NAME = f"llava+{SPEC}"


def kit_file(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    folder = folder / NAME
    folder.mkdir()
    path = folder / f"{NAME}_pets{suffix}"
    status = {"model_name": NAME, "commit": "abc123", "created_at": "2026-11-22T16:33:29+00:00"}
    (folder / "status.json").write_text(json.dumps(status))
    if suffix == ".xlsx":
        from openpyxl import Workbook

        book = Workbook()
        for row in (list(rows[0]), *(list(row.values()) for row in rows)):
            book.active.append(row)  # type: ignore[union-attr]
        book.save(path)
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        # as pandas writes it with QUOTE_ALL
        cells = [list(rows[0]), *(list(row.values()) for row in rows)]
        path.write_text("".join("\t".join(f'"{cell}"' for cell in row) + "\n" for row in cells))
    return path


@pytest.mark.parametrize("suffix", [".xlsx", ".tsv", ".json"])
def test_vlmevalkit_predictions(tmp_path: Path, suffix: str) -> None:
    (run,) = import_runs([kit_file(tmp_path, suffix, ROWS)], tmp_path / "run", read_vlmevalkit)
    header = run.header
    assert (header.model, header.label, header.date) == ("llava", SPEC, "2026-11-22")
    assert (header.task["name"], header.task["metric"]) == ("VLMEvalKit:pets", "VLMEvalKit:hit")
    assert header.plugins == [vlm_eff.plugin(SPEC).to_dict()] and "new_tokens" in header.task["imported"]["not_told"]
    first, second, third = run.samples.values()
    assert (first.id, first.prompt, first.answer, first.score) == ("0", "which?\nA. cat\nB. dog", "A.", 1.0)
    assert (second.score, second.status) == (0.0, "ok")
    assert (third.score, third.status, third.prompt) == (0.0, "error", "q")


def test_without_hit_answers_are_compared_exactly(tmp_path: Path) -> None:
    rows = [{"index": 5, "question": "q", "answer": "Blue", "prediction": " blue."}]
    source, lines = read_vlmevalkit(kit_file(tmp_path, ".tsv", rows))
    assert source.metric == "exact" and lines[0].value == 1.0


def test_a_name_with_a_plus_is_a_name(tmp_path: Path) -> None:
    path = kit_file(tmp_path, ".tsv", ROWS)
    named = path.rename(path.with_name("other_pets.tsv"))
    (named.parent / "status.json").write_text(json.dumps({"model_name": "other"}))
    assert read_vlmevalkit(named)[0].specs == ()
    (named.parent / "status.json").write_text(json.dumps({"model_name": "Emu2+chat"}))
    assert read_vlmevalkit(named.rename(path.with_name("Emu2+chat_pets.tsv")))[0].model == "Emu2+chat"


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="PRED_FORMAT"):
        read_vlmevalkit(tmp_path / "a_b.pkl")


def test_the_command(tmp_path: Path) -> None:
    path = lmms_file(tmp_path / "logs", LINES, RESULTS)
    command = ["import", "lmms", str(path), "--output", str(tmp_path / "run"), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    (made,) = json.loads(done.stdout)
    assert made["plugins"] == SPEC and made["items"] == 3 and made["score"] == pytest.approx(1 / 3)
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 1 and "holds something" in again.stderr
    assert CliRunner().invoke(app, ["import", "kit", str(path), "--output", str(tmp_path / "x")]).exit_code == 2


def test_several_files_get_a_folder_each(tmp_path: Path) -> None:
    one = lmms_file(tmp_path / "logs", LINES, RESULTS)
    two = one.with_name(one.name.replace("shapes", "colors"))
    two.write_text(one.read_text())
    runs: list[Run] = import_runs([one, two], tmp_path / "runs", read_lmms)
    assert [run.folder.name for run in runs] == ["shapes", "colors"]
    with pytest.raises(VlmEffError, match="different tasks"):
        import_runs([one, one], tmp_path / "again", read_lmms)
    assert replace(runs[0], folder=runs[1].folder).samples == runs[1].samples
