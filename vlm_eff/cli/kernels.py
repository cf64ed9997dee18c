"""`vlm-eff kernels`: the fused operations, in which forms they exist, and which of them runs on a device."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from rich.table import Table

from vlm_eff.cli.output import print_json, print_table, say
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.kernels import ops
from vlm_eff.kernels.dispatch import Forms
from vlm_eff.kernels.triton_here import why_no_kernel


def show_kernels(device: str, *, as_json: bool) -> None:
    """Print every operation; on stderr, why kernels cannot run on `device`.

    Raises:
        ConfigError: there is no such device.
    """
    probe = _probe(device)
    device, reason = str(probe.device), why_no_kernel([probe])
    rows = [_row(name, forms, reason) for name, forms in ops.operations().items()]
    if as_json:
        print_json({"device": device, "why_no_kernels": reason, "operations": rows})
        return
    table = Table("operation", "what it does", "forms", f"auto on {device}")
    for row in rows:
        table.add_row(row["name"], row["summary"], ", ".join(row["forms"]), row["auto"])
    print_table(table)
    if reason is not None:
        say(f"no kernel runs on {device}: {reason}")


def _probe(device: str) -> torch.Tensor:
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        return torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            explain(f"device {device!r} ({str(error).splitlines()[0]})", "cpu, cuda, cuda:1, auto", "Choose another")
        ) from error


def _row(name: str, forms: Forms, reason: str | None) -> dict[str, Any]:
    summary = (inspect.getdoc(getattr(ops, name, None)) or "").split("\n\n")[0].replace("\n", " ")
    kernel = "triton" in forms.forms and reason is None
    return {"name": name, "summary": summary, "forms": list(forms.forms), "auto": "triton" if kernel else "torch"}
