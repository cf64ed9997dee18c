"""`vlm-eff doctor`: what is installed, what it lacks, and on request what a device and a model can carry."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from vlm_eff.cli.output import print_json, print_table, print_text, progress, say
from vlm_eff.eval.entry_points import Offer, offers
from vlm_eff.eval.installation import Installation, look

# the name of the model that comes along, which other commands take where no model is named
BUNDLED = "bundled"


def examine(device: str | None, model: str | None, attention: str, *, as_json: bool) -> None:
    """Print what was found; torch is imported only where a device or a model is named, and last.

    Raises:
        InputError: there is no such device or model.
        UnsupportedModelError: no adapter knows the model's family.
    """
    found = look()
    others = offers()
    if not as_json:
        _print_installation(found, others)
    result = found.to_dict() | {"entry_points": [one.to_dict() for one in others], "device": None, "model": None}
    if device is not None:
        result["device"] = _device(device)
    if model is not None:
        result["model"] = _model(model, attention)
    if as_json:
        print_json(result)
        return
    _print_rest(result)
    for remark in found.remarks:
        say(remark)
    for one in others:
        if one.problem:
            say(f"the installed {one.group} {one.name!r} of {one.package} cannot be used: {one.problem}")


def _device(name: str) -> dict[str, Any]:
    with progress("importing torch"):
        import torch

        from vlm_eff.eval.loading import device_of
        from vlm_eff.kernels.triton_here import why_no_kernel
        from vlm_eff.reference.machine import describe_device
    device = device_of(name)
    return {
        "asked": name,
        "device": str(device),
        "name": describe_device(device),
        "cuda": torch.version.cuda,
        "why_no_kernels": why_no_kernel([torch.empty(0, device=device)]),
    }


def _model(name: str, attention: str) -> dict[str, Any]:
    with progress("looking at the model"):
        from vlm_eff.eval.fitting import fits
        from vlm_eff.eval.loading import load_outline, quiet_libraries
        from vlm_eff.models.adapter import adapter_for

        quiet_libraries()
        outline = load_outline(None if name == BUNDLED else name, attention=attention)
        adapter = adapter_for(outline)
        methods = [fit.to_dict() for fit in fits(outline)]
    return {"name": name, "family": adapter.name, "about": adapter.explain(), "methods": methods}


def _print_installation(found: Installation, others: tuple[Offer, ...]) -> None:
    print_text(f"vlm-eff {found.version}, Python {found.python}, {found.platform}")
    packages = Table("package", "installed", "needed", "tested", "remark")
    for one in found.packages:
        packages.add_row(one.name, one.version or "-", one.needed, one.tested, one.problem or "")
    print_table(packages)
    extras = Table("extra", "missing", "install")
    for extra in found.extras:
        extras.add_row(extra.name, ", ".join(extra.missing) or "nothing", extra.command if extra.missing else "")
    print_table(extras)
    decoders = Table("video decoder", "package", "note")
    for decoder in found.decoders:
        installed = f"{decoder.package} {decoder.version}" if decoder.package else "-"
        decoders.add_row(decoder.name, installed, decoder.note)
    print_table(decoders)
    for offer in others:
        whose = offer.package or "an unnamed package"
        print_text(f"{offer.group} {offer.name} of {whose}: {'cannot be used' if offer.problem else 'ok'}")


def _print_rest(result: dict[str, Any]) -> None:
    device, model = result["device"], result["model"]
    if device is not None:
        print_text(f"device {device['device']}: {device['name']}; kernels: {device['why_no_kernels'] or 'Triton'}")
    if model is not None:
        print_text(model["about"])
        taken = [row["method"] for row in model["methods"] if row["why_not"] is None]
        print_text(f"attach with their defaults: {', '.join(taken) or 'none'}")
        table = Table("does not", "room", "why")
        for row in model["methods"]:
            if row["why_not"] is not None:
                table.add_row(row["method"], row["room"], row["why_not"])
        if table.row_count:
            print_table(table)
    if device is None or model is None:
        say("--device auto looks at the device, --model NAME at a model and what goes on it")
