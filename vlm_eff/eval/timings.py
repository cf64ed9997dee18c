"""The records of `benchmarks/` as Markdown tables, each with what it was measured on."""

from __future__ import annotations

from vlm_eff.eval.record import Record


def speed_table(record: Record) -> str:
    """The record of `benchmarks/prefill.py` as a Markdown table."""
    config = record.config
    lines = ["| plugin | n_eq | FLOPs | prefill time |", "|---|---|---|---|"]
    for row in record.result:
        low, high = row["time_ratio_interval"]
        time = f"{row['time_ratio']:.2f} [{low:.2f}, {high:.2f}]"
        lines.append(f"| `{row['plugin']}` | {row['n_eq']:.0f} | {row['flop_ratio']:.2f} | {time} |")
    kind = "ratios only" if "CPU" in record.device else "ratios"
    note = (
        f"With the plugin / bare, {kind}: median of {record.n} interleaved pairs [95 % interval], tower included. "
        f"Model: {record.model}, {config['visual_tokens']} visual and {config['text_tokens']} text tokens, "
        f"batch {config['batch']}, {config['dtype']}, {config['threads']} thread(s), {record.device}, {record.date}."
    )
    return "\n".join([*lines, "", note])


def overhead_table(record: Record) -> str:
    """The record of `benchmarks/overhead.py` as a Markdown table: one line a method, one pair of columns a length."""
    lengths = list(dict.fromkeys(row["visual_tokens"] for row in record.result))
    rows = {(row["plugin"], row["visual_tokens"]): row for row in record.result}
    titles = " | ".join(f"{n} tokens: selecting | saved | share" for n in lengths)
    lines = [f"| plugin | {titles} |", "|" + "---|" * (1 + 3 * len(lengths))]
    for plugin in dict.fromkeys(row["plugin"] for row in record.result):
        cells = []
        for length in lengths:
            row = rows.get((plugin, length))
            share = None if row is None else row["share_of_saving"]
            cells += (
                ["-"] * 3
                if row is None
                else [
                    f"{row['selection_ms']:.1f} ms",
                    f"{row['saved_ms']:.0f} ms",
                    "nothing saved" if share is None else f"{share:.1%}",
                ]
            )
        lines.append(f"| `{plugin}` | {' | '.join(cells)} |")
    config = record.config
    pairs = ", ".join(f"{count} for {length} tokens" for length, count in _pairs(record).items())
    note = (
        "Time a method takes to look at the tower, to score and to select, the prefill time it saves, and the first as "
        f"a share of the second: medians of interleaved pairs ({pairs}). Absolute times are of this machine, the share "
        f"is what counts. Model: {record.model}, {config['text_tokens']} text tokens, {config['dtype']}, "
        f"{config['threads']} thread(s), {record.device}, {record.date}."
    )
    return "\n".join([*lines, "", note])


def _pairs(record: Record) -> dict[int, int]:
    return {row["visual_tokens"]: row["pairs"] for row in record.result}


def towers_table(record: Record) -> str:
    """The record of `benchmarks/towers.py` as a Markdown table: throughput beside the FLOPs that allow it."""
    lines = ["| tower | plugin | tokens left | FLOPs | ideal throughput | throughput |", "|---|---|---|---|---|---|"]
    for row in record.result:
        low, high = row["time_ratio_interval"]
        cells = [row["model"], f"`{row['plugin']}`", f"{row['tokens_left']:.0f} of {row['tokens']}"]
        cells += [f"{row['flop_ratio']:.2f}", f"x{1 / row['flop_ratio']:.2f}"]
        cells += [f"x{row['throughput_ratio']:.2f} [{1 / high:.2f}, {1 / low:.2f}]"]
        lines.append(f"| {' | '.join(cells)} |")
    config = record.config
    note = (
        f"With the plugin / bare, ratios only: median of interleaved pairs [95 % interval], {record.n} pairs at most, "
        f"of {record.model}; batch {config['batch']}, {config['dtype']}, {config['threads']} thread(s), "
        f"{record.device}, {record.date}."
    )
    return "\n".join([*lines, "", note])


def features_table(record: Record) -> str:
    """The record of `benchmarks/features.py` as a Markdown table, by what is left of the FLOPs."""
    lines = [
        "| plugin | tokens left | FLOPs | patch features | class feature | saliency ranks |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(record.result, key=lambda row: -row["flop_ratio"]):
        cells = [f"`{row['plugin']}`", f"{row['tokens_left']:.0f}", f"{row['flop_ratio']:.2f}"]
        cells += [f"{row[name]:.3f}" for name in ("patch_cosine", "class_cosine", "saliency_rank")]
        lines.append(f"| {' | '.join(cells)} |")
    config = record.config
    note = (
        "Cosine similarity of features to the bare tower's, and rank correlation of the saliency map "
        f"({config['saliency']}): means over {record.n} photographs ({', '.join(config['images'])}; {config['side']} "
        f"pixels). {record.model}, {config['dtype']}, {record.device}, {record.date}. Patches that are dropped count "
        "with the feature they had when they were dropped."
    )
    return "\n".join([*lines, "", note])
