"""Code to copy, which repeats outside the page what was done on it.

It is written for whoever reads it: the public door, and the functions that the page itself loads and asks with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from vlm_eff.eval.loading import BUNDLED

# what a picture without a name of its own is called in the code
PICTURE = "picture.png"
_ASKING = (
    "from vlm_eff.eval.loading import load_subject",
    "from vlm_eff.eval.subject import open_image",
)


def code_for(
    model_name: str,
    specs: Sequence[str],
    prompt: str,
    *,
    pictures: Sequence[str] = (PICTURE,),
    max_new_tokens: int = 32,
    dtype: str = "auto",
    device: str = "auto",
) -> str:
    """Code that asks one question bare, and with plugins that are attached together.

    model_name: of the subject; specs: the plugins, none asks bare alone; pictures: names of the files that are shown
    dtype, device: as the model was loaded
    """
    said = f"subject.answer(inputs, max_new_tokens={max_new_tokens})"
    lines = [
        "from pathlib import Path",
        "",
        *(["from vlm_eff import attach, plugin"] if specs else []),
        *_ASKING,
        "",
        *_loaded(model_name, pictures, prompt, dtype, device),
        "inputs = subject.inputs(pictures, question)",
        f'print("bare:", {said})',
    ]
    if specs:
        lines += [
            *_attached("subject.model", specs),
            f'    print("with plugins:", {said})',
            "print(handle.stats())",
        ]
    return _text(lines)


def comparison_code(
    model_name: str,
    methods: Sequence[str],
    prompt: str,
    *,
    share: float,
    pictures: Sequence[str] = (PICTURE,),
    max_new_tokens: int = 32,
    pairs: int = 0,
    dtype: str = "auto",
    device: str = "auto",
) -> str:
    """Code that asks one question of several methods at one budget, and of the blind baselines.

    methods: names, or specs without what the budget sets; share: of the visual tokens, averaged over layers
    pairs:   timed pairs, 0 times nothing; the rest as in `code_for`
    """
    return _text(
        [
            "from pathlib import Path",
            "",
            "from vlm_eff.eval.budgets import sizes_of",
            "from vlm_eff.eval.compare import compare",
            _ASKING[0],
            "from vlm_eff.eval.runs.arms import at_shares",
            _ASKING[1],
            "",
            *_loaded(model_name, pictures, prompt, dtype, device),
            f"methods = {_list(methods)}",
            "sizes = sizes_of(subject, pictures, question)",
            f"arms, unreachable = at_shares(methods, [{share!r}], sizes, baselines=True)",
            "plugins = {arm.label: arm.plugins[0] for arm in arms if arm.plugins}",
            "found = compare(",
            f"    subject, pictures, question, plugins, max_new_tokens={max_new_tokens}, pairs={pairs}",
            ")",
            'print("bare:", found.bare_answer)',
            "for arm in found.arms:",
            '    print(f"{arm.plugin}: {arm.answer} (n_eq {arm.n_eq:.1f})")',
            "for label, reason in unreachable.items():",
            '    print(f"{label} left out: {reason}")',
        ]
    )


def drawing_code(
    model_name: str,
    specs: Sequence[str],
    *,
    prompt: str = "",
    classes: Sequence[int] = (),
    steps: int,
    guidance: float,
    seed: int,
    dtype: str = "auto",
    device: str = "auto",
) -> str:
    """Code that draws one request in full, and with plugins that are attached together.

    model_name: of the painter; prompt or classes: what it draws; the rest as in `code_for`
    """
    wanted = [f"prompt={_quoted(prompt)}"] if prompt else [f"classes={tuple(classes)!r}"]
    paint = f"painter.paint(steps={steps}, guidance={guidance!r}, seed={seed})"
    return _text(
        [
            *(["from vlm_eff import attach, plugin"] if specs else []),
            "from vlm_eff.eval.contact_sheet import to_image",
            *(["from vlm_eff.eval.denoising import likeness"] if specs else []),
            "from vlm_eff.eval.painter import load_painter",
            "",
            f"painter = load_painter({', '.join([_quoted(model_name), *wanted, *_place(dtype, device)])})",
            f"full = {paint}",
            'to_image(full[0]).save("full.png")',
            *(
                [
                    *_attached("painter.pipe", specs),
                    f"    made = {paint}",
                    'to_image(made[0]).save("with_plugins.png")',
                    'print(f"PSNR to the full run: {likeness(made, full):.1f} dB")',
                    "print(handle.stats())",
                ]
                if specs
                else []
            ),
        ]
    )


def _loaded(model_name: str, pictures: Sequence[str], prompt: str, dtype: str, device: str) -> list[str]:
    name = [] if model_name == BUNDLED else [_quoted(model_name)]
    return [
        f"subject = load_subject({', '.join([*name, *_place(dtype, device)])})",
        f"pictures = [open_image(Path(name)) for name in {_list(pictures)}]",
        f"question = {_quoted(prompt)}",
    ]


def _place(dtype: str, device: str) -> list[str]:
    return [f"{name}={_quoted(value)}" for name, value in (("dtype", dtype), ("device", device)) if value != "auto"]


def _attached(model: str, specs: Sequence[str]) -> list[str]:
    plugins = [f"plugin({_quoted(spec)})" for spec in specs]
    if len(plugins) == 1:
        return [f"with attach({model}, {plugins[0]}) as handle:"]
    return ["plugins = [", *(f"    {one}," for one in plugins), "]", f"with attach({model}, *plugins) as handle:"]


def _list(texts: Sequence[str]) -> str:
    return f"[{', '.join(_quoted(text) for text in texts)}]"


def _quoted(text: str) -> str:
    """A string literal with double quotes, in which nothing can end it early."""
    # the escapes of JSON are those of Python, as long as nothing beyond ASCII is escaped
    return json.dumps(text, ensure_ascii=False)


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"
