"""A page for every method, made of the registry, its docstring, its composition and the committed records."""

from __future__ import annotations

import inspect
import re

from rich.pretty import pretty_repr

import vlm_eff
from vlm_eff.core.config import write_spec
from vlm_eff.core.errors import ConfigError
from vlm_eff.core.registry import METHODS, Method
from vlm_eff.eval.catalogue import families_text, method_row
from vlm_eff.eval.measured import measured
from vlm_eff.eval.method_docs import MethodDoc, method_doc
from vlm_eff.eval.readme import linked

# sections of the overview, by the module that a method lives in; the first that fits
GROUPS = (
    ("vlm_eff.tokens.methods.tower", "Before and inside the vision tower"),
    ("vlm_eff.tokens.methods.entry", "Before the language model"),
    ("vlm_eff.tokens.methods.decoder", "Between and inside decoder layers"),
    ("vlm_eff.tokens.methods.video", "Videos"),
    ("vlm_eff.tokens.methods.baselines", "Baselines of tokens"),
    ("vlm_eff.kvcache.methods.eviction", "KV cache: what is evicted"),
    ("vlm_eff.kvcache.methods.precision", "KV cache: in how many bits"),
    ("vlm_eff.kvcache.methods", "KV cache: other forms, baselines"),
    ("vlm_eff.recipes", "Across rooms"),
    ("vlm_eff.diffusion.methods", "Diffusion"),
)
_GUIDES = {
    "tokens": ("all methods at equal budgets", "methods.md"),
    "kvcache": ("the guide to the KV cache", "kvcache.md"),
    "diffusion": ("the guide to diffusion pipelines", "diffusion.md"),
    "recipes": ("the guide to the KV cache", "kvcache.md"),
}
_WIDTH = 96


def method_groups() -> dict[str, list[Method]]:
    """Our methods by section, each section in the order of names."""
    found: dict[str, list[Method]] = {title: [] for _, title in GROUPS}
    for method in vlm_eff.methods().values():
        title = next((title for start, title in GROUPS if method.make.__module__.startswith(start)), None)
        if title is not None:
            found[title].append(method)
    return found


def overview() -> str:
    """The page that leads to all others: a table a section."""
    parts = [
        "# Methods, one by one",
        "A page each: what it computes, its source and where it differs, its arguments, the parts it is made of, and "
        "what was measured of it. They are made from the registry, from docstrings and from the records in "
        "`benchmarks/results/`. The same methods side by side, at equal budgets: [Methods](../methods.md).",
    ]
    for title, methods in method_groups().items():
        lines = [f"## {title}", "", "| method | what it does | paper |", "|---|---|---|"]
        lines += [f"| [`{m.name}`]({m.name}.md) | {_cell(m.summary)} | {linked(m.paper)} |" for m in methods]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def method_page(method: Method) -> str:
    """The page of one method as Markdown; links to others are relative to `docs/methods/`."""
    name, doc = method.name, method_doc(method.make)
    parts = [f"# {name}", _text(doc.summary, name), _facts(method), "## Use it", _use(method)]
    if doc.parts or doc.prose:
        parts += ["## What it computes", *_definition(doc, name)]
    parts += ["## Arguments", _arguments(method, doc), "## Errors"]
    parts += ["\n".join(f"- `{error}`: {_text(why, name)}" for error, why in doc.raises)]
    parts += ["## Measured", *_measured(method)]
    return "\n\n".join(parts) + "\n"


def _facts(method: Method) -> str:
    row = method_row(method)
    title, page = _GUIDES[method.room]
    families = families_text(row)
    if method.room == "diffusion":
        families = "UNets and transformers of diffusers; where one is not served, attach says why"
    elif families == "all":
        families = f"all: {', '.join(row.families)}"
    facts = {
        "room": f"`{method.room}`; see [{title}](../{page})",
        "acts": method.acts,
        "paper": linked(method.paper),
        "training": "none needed" if method.training_free else "has learned weights",
        "tested on": families,
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items())])


def _use(method: Method) -> str:
    try:
        plugin = method.make()
    except ConfigError as error:
        return f"It cannot be made from defaults: {_text(str(error), method.name)}"
    defaults = {key: value for key, value in _defaults(method).items() if value is not None}
    return "\n".join(
        [
            f"```python\nfrom vlm_eff.{method.room} import {method.name}\n\nplugin = {method.name}()\n```",
            "",
            "Attach it with `attach(model, plugin)`. As a spec, for `--plugin` and `vlm_eff.plugin(...)`, with the "
            "defaults written out:",
            "",
            f"```text\n{write_spec(method.name, defaults)}\n```",
            "",
            "What it is made of:",
            "",
            f"```text\n{pretty_repr(plugin, max_width=_WIDTH)}\n```",
        ]
    )


def _definition(doc: MethodDoc, name: str) -> list[str]:
    table = ["| | |", "|---|---|", *(f"| **{label}** | {_cell(_text(text, name))} |" for label, text in doc.parts)]
    prose = [re.sub(r"^(Paper|Saves|Costs?) ", r"**\1** ", _text(text, name)) for text in doc.prose]
    return [*(["\n".join(table)] if doc.parts else []), *prose]


def _arguments(method: Method, doc: MethodDoc) -> str:
    defaults = _defaults(method)
    lines = ["| argument | default | |", "|---|---|---|"]
    for argument, meaning in doc.arguments:
        default = f"`{defaults[argument]!r}`" if argument in defaults else ""
        lines.append(f"| `{argument}` | {_cell(default)} | {_cell(_text(meaning, method.name))} |")
    return "\n".join(lines)


def _measured(method: Method) -> list[str]:
    found = measured(method.name)
    if not found:
        return ["Not measured: no record in `benchmarks/results/` has a row of it."]
    # tables bring headings of their own, which go below these
    return [f"### {title}\n\n" + re.sub(r"^###", "####", text, flags=re.MULTILINE) for title, text in found]


def _defaults(method: Method) -> dict[str, object]:
    parameters = inspect.signature(method.make).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _text(text: str, name: str) -> str:
    """Docstring text as Markdown: stars are products and powers, other methods and pages become links."""
    pieces = re.split(r"(`[^`]+`)", text)
    pieces[::2] = [re.sub(r"\bdocs/([\w-]+\.md)", r"[\1](../\1)", linked(p.replace("*", r"\*"))) for p in pieces[::2]]
    for place, code in enumerate(pieces[1::2]):
        other = code.strip("`")
        if other in METHODS and other != name:
            pieces[2 * place + 1] = f"[{code}]({other}.md)"
    return "".join(pieces)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
