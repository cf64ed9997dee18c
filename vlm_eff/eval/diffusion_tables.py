"""Tables of the diffusion guide, made from the committed records."""

from __future__ import annotations

import itertools
import re
from typing import Any

from vlm_eff.eval.record import Record

# a row belongs to the smallest share of the full run's evaluations that holds it
_CLASSES = (0.6, 0.3)
_KINDS = ("full", "fewer steps", "ours", "diffusers", "peer", "real")


def denoising_quality_table(record: Record) -> str:
    """Quality against cost: one row an arm, by kind and then by what it costs."""
    rows = sorted(record.result["rows"], key=lambda row: (_KINDS.index(row["kind"]), -row.get("evaluations", 0.0)))
    lines = [
        "| | of whom | evaluations | PSNR, dB | features | accuracy | Frechet | against fewer steps |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(row, record.result["rows"]) for row in rows),
        "",
        f"`{record.model}`, {record.config['steps']} steps of {record.config['scheduler']}, guidance "
        f"{record.config['guidance']:g}, N = {record.n} pictures, {record.device}, {record.date}. Evaluations are "
        "FLOPs of the whole run over those of one full evaluation. PSNR (with its standard error) and the relative "
        "distance of features are to the full run of the same seed, Frechet distance is to real pictures in the "
        "features of the bundled classifier. The last column is the PSNR against that of plain UniPC steps "
        "at the same cost, interpolated.",
    ]
    return "\n".join(lines)


def _line(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    label = f"`{row['label']}`" if row["kind"] == "ours" else row["label"]
    if "error" in row:
        return f"| {label} | {row['kind']} | did not run: {row['error']} | | | | | |"
    if row["kind"] in ("full", "real"):
        cost = f"{row['evaluations']:.1f}" if "evaluations" in row else "-"
        return f"| {label} | {row['kind']} | {cost} | - | - | {row['class_accuracy']:.2f} | {row['frechet']:.2f} | |"
    ahead = against_fewer(row, rows)
    return (
        f"| {label} | {row['kind']} | {row['evaluations']:.1f} | {row['psnr']:.1f} ± {row['psnr_error']:.1f} | "
        f"{row['feature_distance']:.3f} | {row['class_accuracy']:.2f} | {row['frechet']:.2f} | "
        f"{'' if ahead is None else f'{ahead:+.1f} dB'} |"
    )


def denoising_summary(record: Record) -> str:
    """Best setting of each of our methods, and of fewer steps, within classes of cost; best first."""
    best: dict[tuple[int, str], dict[str, Any]] = {}
    for row in record.result["rows"]:
        share = row.get("evaluations", 99.0) / record.config["steps"]
        if row["kind"] not in ("ours", "fewer steps") or share > _CLASSES[0]:
            continue
        place = max(number for number, most in enumerate(_CLASSES) if share <= most)
        key = (place, re.split("[:,]", row["label"])[0] if row["kind"] == "ours" else row["label"])
        if key not in best or row["psnr"] > best[key]["psnr"]:
            best[key] = row
    lines = ["| | evaluations | PSNR to the full run, dB | Frechet |", "|---|---|---|---|"]
    for (_, _), row in sorted(best.items(), key=lambda item: (item[0][0], -item[1]["psnr"])):
        label = f"`{row['label']}`" if row["kind"] == "ours" else f"*{row['label']}*"
        lines.append(f"| {label} | {row['evaluations']:.1f} | {row['psnr']:.1f} | {row['frechet']:.1f} |")
    steps, scheduler = record.config["steps"], record.config["scheduler"]
    lines += [
        "",
        f"Bundled UNet, against its own {steps} steps of {scheduler}; the best setting of each method that costs at "
        f"most {', '.join(f'{share:.0%}' for share in _CLASSES)} of the evaluations (weighted by FLOPs). "
        f"N = {record.n} pictures, {record.device}, {record.date}.",
    ]
    return "\n".join(lines)


def denoising_time_table(record: Record) -> str:
    """Measured time against the ideal of FLOPs: one row an arm."""
    lines = ["| model | | FLOPs | time | time / FLOPs |", "|---|---|---|---|---|"]
    for model, rows in record.result.items():
        for row in rows:
            label = f"`{row['label']}`" if row["kind"] == "ours" else row["label"]
            if "error" in row:
                lines.append(f"| {model} | {label} | did not run: {row['error']} | | |")
                continue
            time = row["time"]
            spread = f"{time['ratio']:.2f} [{time['low']:.2f}, {time['high']:.2f}]"
            lines.append(f"| {model} | {label} | {row['flop_ratio']:.2f} | {spread} | {row['time_over_flops']:.2f} |")
    config = record.config
    lines += [
        "",
        f"With the method / bare, {config['steps']} steps, {config['dtype']}, random weights, median of {record.n} "
        f"interleaved pairs [95 %], {record.device}, {record.date}. On a CPU these are ratios to hold against "
        "the FLOPs, not speed.",
    ]
    return "\n".join(lines)


def against_fewer(row: dict[str, Any], rows: list[dict[str, Any]], solver: str = "UniPC") -> float | None:
    """PSNR of a row less that of plain steps of a solver at the same cost; None beyond what was measured."""
    if row["kind"] == "fewer steps":
        return None
    known = sorted(
        (other["evaluations"], other["psnr"])
        for other in rows
        if other["kind"] == "fewer steps" and solver in other["label"] and "error" not in other
    )
    for (low, first), (high, second) in itertools.pairwise(known):
        if low <= row["evaluations"] <= high:
            share = (row["evaluations"] - low) / (high - low) if high > low else 0.0
            return float(row["psnr"] - (first + share * (second - first)))
    return None
