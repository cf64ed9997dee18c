"""Options that several commands take, with the same words everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]
Model = Annotated[
    str | None, typer.Option("--model", metavar="FOLDER_OR_HUB_ID", help="Default: the model that comes along.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto: a GPU where there is one.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: float32 on a CPU, bfloat16 elsewhere.")]
Attention = Annotated[str, typer.Option("--attn", help="Attention of the model: sdpa or eager.")]
