"""Pages of methods: nothing of a docstring gets lost, code and specs on them work, rows come from the records."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

import vlm_eff
from vlm_eff.eval import readme
from vlm_eff.eval.measured import SOURCES, measured, methods_in, narrowed
from vlm_eff.eval.method_docs import method_doc
from vlm_eff.eval.method_pages import method_groups, method_page, overview
from vlm_eff.eval.record import read_record

METHODS = {name: method for name, method in vlm_eff.methods().items() if method.room != "third party"}


def words(text: str) -> list[str]:
    return sorted(re.findall(r"\S+", re.sub(r"\bArgs:|\bRaises:", "", text)))


def test_nothing_of_a_docstring_gets_lost() -> None:
    for name, method in METHODS.items():
        doc = method_doc(method.make)
        pairs = [f"{label} {text}" for label, text in doc.parts]
        named = [f"{label}: {text}" for label, text in (*doc.arguments, *doc.raises)]
        made = " ".join([doc.summary, *pairs, *doc.prose, *named])
        assert words(made) == words(method.make.__doc__ or ""), name


def test_two_labels_on_a_line_are_two_parts() -> None:
    def made() -> None:
        """Do it.

        Score    attention  [B, V]
        Reduce   drop, into a side
                 store     When  at
                 last
        Paper    Somebody

        Prose that goes
        on.

        Args:
            a: one
                and more.

        Raises:
            ConfigError: no.
        """

    doc = method_doc(made)
    assert doc.parts == (
        ("Score", "attention  [B, V]"),
        ("Reduce", "drop, into a side store"),
        ("When", "at last"),
        ("Paper", "Somebody"),
    )
    assert doc.prose == ("Prose that goes on.",)
    assert doc.arguments == (("a", "one and more."),)
    assert doc.raises == (("ConfigError", "no."),)


def test_code_and_spec_on_a_page_make_the_same_plugin() -> None:
    alone = 0
    for method in METHODS.values():
        page = method_page(method)
        code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
        if code is None:
            assert "cannot be made from defaults" in page
            alone += 1
            continue
        found: dict[str, object] = {}
        exec(compile(code[1], method.name, "exec"), found)
        spec = re.search(r"```text\n(.*?)\n```", page, re.DOTALL)
        assert spec is not None
        assert vlm_eff.plugin(spec[1]) == found["plugin"], spec[1]
        assert repr(found["plugin"]).replace(" ", "")[:40] in re.sub(r"\s", "", page)
    assert alone == 2  # teacache and magcache want a calibration


def test_every_method_is_on_the_overview_once() -> None:
    names = [method.name for methods in method_groups().values() for method in methods]
    assert sorted(names) == sorted(METHODS)
    assert re.findall(r"^\| \[`(\w+)`\]\(\1\.md\)", overview(), re.MULTILINE) == names


def test_arguments_errors_and_facts_are_on_the_page() -> None:
    page = method_page(METHODS["pyramiddrop"])
    assert "| `keep_ratio` | `0.5` | factor of each stage" in page
    assert "| paper | [2410.17247](https://arxiv.org/abs/2410.17247) |" in page
    assert "| **Score** | attention of the last prompt token" in page
    assert r"int(n \* keep_ratio\*\*i)" in page, "stars outside of code are no emphasis"
    assert "- `ConfigError`: a ratio outside (0, 1]" in page
    assert "all: gemma3" in page
    assert "[`prumerge`](prumerge.md)" in method_page(METHODS["prumerge_plus"])


def test_measured_rows_are_those_of_the_record() -> None:
    (answers,) = (text for title, text in measured("fastv") if title == "Answers of the bundled model")
    record = read_record(readme.ROOT / readme.RECORD)
    row = next(row for row in record.result["rows"] if row["label"] == "fastv @ 72")
    assert f"{100 * row['tasks']['scenes']['accuracy']:.1f}" in answers
    named = set(re.findall(r"^\| `?(\w+)`? \|", answers, re.MULTILINE)) - {"method"}
    assert named == {"bare", "fastv", "random_drop", "uniform_grid", "average_pool", "downsize"}
    assert "16 of 144" not in answers, "out of reach: no row, no table"
    assert record.device in answers and record.date in answers and "N = " in answers


def test_each_record_reaches_the_pages_of_its_methods() -> None:
    known = {
        "Answers with learned registers": "victor",
        "Answers under sparse prefill": "top_blocks",
        "Features of a trained tower": "evit",
        "Throughput of a tower": "tome",
        "Time of the prefill": "feather",
        "What selecting costs": "dart",
        "Answers out of the compressed cache": "snapkv",
        "Answers out of the cache of real weights": "h2o",
        "Perplexity of text": "kivi",
        "Memory of the cache, time of a step": "zipvl_kv",
        "Pictures of the bundled UNet": "deepcache",
        "Pictures of the bundled transformer": "first_block",
        "Time of a run": "fora",
        "Answers of a model of real weights": "divprune",
        "Answers of the bundled model": "pixelprune",
    }
    assert set(known) == {source.title for source in SOURCES}
    for title, name in known.items():
        text = dict(measured(name))[title]
        assert name in text and re.search(r"20\d\d-\d\d-\d\d", text), title


def test_what_was_not_measured_says_so() -> None:
    assert measured("prompt_cache") == []
    assert "Not measured" in method_page(METHODS["prompt_cache"])


def test_rows_of_others_stay_out_of_the_record() -> None:
    source = next(source for source in SOURCES if source.path == readme.UNET_RECORD)
    record = read_record(readme.ROOT / source.path)
    left = narrowed(record, "taylorseer", source)
    assert left is not None
    ours = {row["label"] for row in left.result["rows"] if row["kind"] not in ("full", "fewer steps", "real")}
    assert ours and all(label.startswith("taylorseer") for label in ours)
    both = narrowed(record, "cfg_cache", source)
    assert both is not None
    assert "forecast:evaluations=10 + cfg_cache:interval=2" in {row["label"] for row in both.result["rows"]}
    assert narrowed(replace(record, result={"rows": []} | {"unreachable": {"x": "y"}}), "fora", source) is None


def test_a_record_that_changes_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    source = next(source for source in SOURCES if source.path == readme.SPEED_RECORD)
    assert measured("feather") == []
    record = read_record(Path(vlm_eff.__file__).parents[1] / source.path)
    path = tmp_path / source.path
    path.parent.mkdir(parents=True)
    record.write(path)
    assert "feather:keep_ratio=0.3" in measured("feather")[0][1]
    other = [row | {"plugin": row["plugin"].replace("feather", "fora")} for row in record.result]
    replace(record, result=other).write(path)
    assert measured("feather") == []


@pytest.mark.parametrize(
    ("label", "names"),
    [
        ("fastv @ 72", {"fastv"}),
        ("prumerge:neighbours=1", {"prumerge"}),
        ("forecast, 10 even steps", {"forecast"}),
        ("a:b=1 + c", {"a", "c"}),
    ],
)
def test_methods_are_read_off_labels(label: str, names: set[str]) -> None:
    assert methods_in(label) == names
