"""`vlm-eff explain`: what the library found out about a model."""

from __future__ import annotations

from vlm_eff.cli.output import print_text, progress
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.models.adapter import adapter_for


def explain_model(name: str | None, dtype: str, device: str, attention: str) -> None:
    """Print the adapter of a model in words."""
    quiet_libraries()
    with progress("loading the model"):
        subject = load_subject(name, dtype=dtype, device=device, attention=attention)
    print_text(adapter_for(subject.model).explain())
