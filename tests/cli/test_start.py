"""What a command does not wait for: modules that are not imported, told by a process that looks at itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

# each of these takes from a tenth of a second to several
HEAVY = {
    "accelerate", "av", "cv2", "datasets", "decord", "diffusers", "gradio", "matplotlib", "onnx", "open_clip", "optuna",
    "pandas", "peft", "pyarrow", "scipy", "skimage", "sklearn", "timm", "tokenizers", "torch", "torchao", "torchcodec",
    "torchvision", "transformers", "triton",
}  # fmt: skip
# what the package itself and the help may do without, too
LIGHT = HEAVY | {"jinja2", "numpy", "packaging", "PIL", "safetensors"}

COMMAND = """
from typer.testing import CliRunner
from vlm_eff.cli import app
result = CliRunner().invoke(app, {arguments!r})
assert result.exit_code == 0, result.output
"""
LOOK = "\nimport sys\nprint('imported', *sorted({names!r} & set(sys.modules)))\n"


def imported(code: str, names: set[str]) -> set[str]:
    """Which of `names` a fresh process has imported once it has run `code`."""
    done = subprocess.run(
        [sys.executable, "-c", code + LOOK.format(names=names)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_the_package_imports_nothing_of_weight() -> None:
    assert not imported("import vlm_eff", LIGHT | {"rich", "typer"})


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]], ids=" ".join)
def test_help_imports_nothing_of_weight(arguments: list[str]) -> None:
    assert not imported(COMMAND.format(arguments=arguments), LIGHT)


@pytest.mark.parametrize("arguments", [["tasks"], ["doctor", "--json"]], ids=" ".join)
def test_these_do_not_wait_for_torch(arguments: list[str]) -> None:
    assert not imported(COMMAND.format(arguments=arguments), HEAVY)


def test_an_import_of_weight_is_seen() -> None:
    # what a saboteur would do, with modules that cost nothing
    assert imported("import sys, types\nsys.modules['torch'] = types.ModuleType('torch')", HEAVY) == {"torch"}
    assert imported("import email.parser", {"email", "torch"}) == {"email"}
