"""Records of the cache as tables: every number stands where it belongs."""

from typing import Any

from vlm_eff.eval.kv_tables import cache_sentence, cache_summary, memory_table, quality_table
from vlm_eff.eval.record import Record


def record(result: Any, **config: Any) -> Record:
    return Record("task", "1", "model", {"dtype": "float32", **config}, "CPU", 7, result)


def answers(scenes: float, easy: float, ratio: float) -> dict[str, Any]:
    return {
        "bytes_ratio": ratio,
        "entries_ratio": ratio,
        "accuracy": {"scenes": {"all": scenes}, "easy_vqa": {"all": easy}},
    }


def row(kind: str, label: str, column: float, spec: str, seen: Any, unseen: Any) -> dict[str, Any]:
    return {"kind": kind, "label": label, "column": column, "spec": spec, "seen": seen, "unseen": unseen}


def test_quality_has_a_table_of_shares_and_one_of_bits_for_each_way() -> None:
    rows = [
        row("bare", "bare", 0, "bare", answers(0.9, 1, 1), answers(0.9, 1, 1)),
        row(
            "evict", "random_evict", 0.5, "random_evict:keep_ratio=0.5", answers(0.1, 0.2, 0.5), answers(0.3, 0.4, 0.5)
        ),
        row("evict", "snapkv", 0.5, "snapkv:keep_ratio=0.5", answers(0.7, 0.8, 0.51), answers(0.6, 0.5, 0.51)),
        row("evict", "snapkv", 0.05, "snapkv:keep_ratio=0.05", answers(0.5, 0.4, 0.09), answers(0.2, 0.1, 0.09)),
        row("bits", "kivi", 4, "kivi:bits=4", answers(0.85, 0.95, 0.3), answers(0.84, 0.94, 0.3)),
        row("other", "low", 0, "low:rank=4", answers(0.83, 0.93, 0.2), answers(0.82, 0.92, 0.2)),
    ]
    lines = quality_table(record(rows, counts={"scenes": {"all": 5}, "easy_vqa": {"all": 2}})).splitlines()
    # columns that nobody measured are left out
    assert "| method | 50% | 5% |" in lines and "| method | 4 bits |" in lines
    seen, unseen = (line for line in lines if line.startswith("| `snapkv`"))
    assert seen == "| `snapkv` | 70.0 / 80.0 | 50.0 / 40.0 (9%) |"
    assert unseen == "| `snapkv` | 60.0 / 50.0 | 20.0 / 10.0 (9%) |"
    assert lines.index(seen) < lines.index("| *random_evict* | 10.0 / 20.0 | - |")
    assert "| full cache | 90.0 / 100.0 | 90.0 / 100.0 |" in lines
    assert "| `kivi` | 85.0 / 95.0 (30%) |" in lines
    assert "| `low:rank=4` | 82.0 / 92.0 | 20% |" in lines
    assert "N = 5 questions" in lines[-1]


def test_the_short_table_has_both_ways_side_by_side() -> None:
    rows = [
        row("bare", "bare", 0, "bare", answers(0.9, 1, 1), answers(0.8, 1, 1)),
        row("evict", "random_evict", 0.5, "random_evict", answers(0.1, 0.2, 0.5), answers(0.3, 0.4, 0.5)),
        row("evict", "snapkv", 0.5, "snapkv", answers(0.7, 0.8, 0.5), answers(0.6, 0.5, 0.5)),
        row("evict", "snapkv", 0.1, "snapkv", answers(0.2, 0.8, 0.1), answers(0.2, 0.5, 0.1)),
        row("bits", "kivi", 2, "kivi", answers(0.85, 0.95, 0.3), answers(0.84, 0.94, 0.3)),
        row("other", "low", 0, "low:rank=4", answers(0.83, 0.93, 0.2), answers(0.82, 0.92, 0.2)),
    ]
    lines = cache_summary(record(rows, counts={"scenes": {"all": 5}, "easy_vqa": {"all": 2}})).splitlines()
    assert lines[0].startswith("| method | 50%, seen | 50%, unseen | 20%, seen |")
    assert lines[2] == "| full cache | 90.0 | 80.0 | 90.0 | 80.0 | 90.0 | 80.0 | 90.0 | 80.0 |"
    assert lines[3:6] == [
        "| `snapkv` | 70.0 | 60.0 | - | - | - | - | - | - |",
        "| `kivi` | - | - | - | - | - | - | 85.0 | 84.0 |",
        "| *random_evict* | 10.0 | 30.0 | - | - | - | - | - | - |",
    ]
    assert "N = 5 questions" in lines[-1] and "(0 more in the guide)" in lines[-1]

    many = [row("evict", f"m{n}", 0.5, f"m{n}", answers(n / 10, 1, 0.5), answers(0, 1, 0.5)) for n in range(9)]
    lines = cache_summary(record(rows + many, counts={"scenes": {"all": 5}, "easy_vqa": {"all": 2}})).splitlines()
    assert [line.split("`")[1] for line in lines[3:9]] == ["snapkv", "m8", "m7", "m6", "m5", "m4"]
    assert "(4 more in the guide)" in lines[-1]


def test_a_record_with_intervals_says_what_is_better_than_chance_and_what_is_noise() -> None:
    def wide(found: dict[str, Any], **more: float) -> dict[str, Any]:
        parts = {part: [0.0, -0.03, 0.05] for part in ("scenes", "easy_vqa")}
        return found | {"more_than": {"full": parts} | {name: {"scenes": [0, low, 1]} for name, low in more.items()}}

    def pair(kind: str, label: str, column: float, seen: Any, unseen: Any) -> dict[str, Any]:
        return row(kind, label, column, label, seen, unseen)

    rows = [
        pair("bare", "bare", 0, answers(0.9, 1, 1), answers(0.9, 1, 1)),
        pair("evict", "h2o", 0.2, wide(answers(0.4, 1, 0.2), random=-0.1), wide(answers(0.3, 1, 0.2), random=-0.2)),
        pair(
            "evict",
            "random_evict, visual entries only",
            0.2,
            wide(answers(0.1, 0.2, 0.2)),
            wide(answers(0.3, 0.4, 0.2)),
        ),
        pair("evict", "snapkv", 0.2, wide(answers(0.7, 0.8, 0.2), random=0.1), None),
        pair("bits", "kivi", 2, wide(answers(0.85, 0.9, 0.3)), wide(answers(0.84, 0.9, 0.3))),
    ]
    counts = {"scenes": {"all": 5}, "easy_vqa": {"all": 2}}
    pictures = {"scenes": 3, "easy_vqa": 1}
    made = record(rows, counts=counts, majority={"scenes": 0.25, "easy_vqa": 0.5}, pictures=pictures)
    lines = quality_table(made).splitlines()
    assert "| method | 20% |" in lines and "| method | 2 bits |" in lines
    assert "| `snapkv` | **70.0** / 80.0 |" in lines and sum("`snapkv`" in line for line in lines) == 1
    assert "| `h2o` | 40.0 / 100.0 |" in lines
    assert "reaches 25.0 / 50.0." in lines[-1] and "4.0 (at most 4.0) / 4.0 (at most 4.0) points" in lines[-1]
    assert "about 3 / 1 pictures" in lines[-1]
    said = cache_sentence(made)
    assert "`snapkv` at 20 % of the entries answers 70.0 % (visual entries at random, text kept: 10.0 %)" in said
    assert "`h2o` at 20 % of the entries answers 30.0 % (visual entries at random, text kept: 30.0 %)" in said
    assert "`kivi` 85.0 % and 84.0 % at 30% of the bytes" in said and "below about 4 points are noise" in said


def test_memory_says_how_far_off_reports_are_and_what_is_missing() -> None:
    made = {
        "row": "snapkv:keep_ratio=0.1",
        "dtype": "float32",
        "live_bytes": 2_000_000,
        "reported_bytes": 2_010_000,
        "closed_form_bytes": None,
        "live_ratio": 0.1,
        "resident_bytes": 3_000_000,
        "decode_time_ratio": 0.9,
        "decode_time_interval": [0.8, 1.0],
        "ideal_time_ratio": 0.85,
    }
    missing = {"row": "QuantizedCache", "dtype": "bfloat16", "not_measured": "no backend"}
    setting = {"visual_tokens": 2880, "text_tokens": 64, "batch": 1, "threads": 1}
    shown = memory_table(record([made, missing], **setting))
    expected = "| 2.0 MB | 10.0% | +0.50% | - | 3.0 MB | 0.90 [0.80, 1.00] | 0.85 |"
    assert f"| `snapkv:keep_ratio=0.1` | float32 {expected}" in shown
    assert "Not measured: QuantizedCache (bfloat16): no backend." in shown
