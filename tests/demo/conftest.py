"""The page, served once for all tests of this folder, and clients for it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.saved_model import model_folder, subject
from vlm_eff.eval.loading import load_subject
from vlm_eff.eval.painter import load_painter

__all__ = ["model_folder", "subject"]


@pytest.fixture(scope="session")
def desk() -> Any:
    """The bundled model and the small UNet at one desk."""
    from vlm_eff.demo.page.app import make_desk

    return make_desk(
        load_subject(None, device="cpu"),
        painter=lambda prompt, classes: load_painter("small-unet", prompt=prompt, classes=classes, device="cpu"),
        painter_name="small-unet",
    )


@pytest.fixture(scope="session")
def address(desk: Any) -> Iterator[str]:
    """Where the page is served."""
    import anyio

    from vlm_eff.demo.page.app import open_page

    # imported lazily by whoever downloads first: pytest would then rewrite its assertions in the server's thread, while
    # another one parses, which Python 3.11 takes badly ("AST constructor recursion depth mismatch")
    assert anyio.open_file
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = open_page(desk, port=port)
    yield str(page.local_url)
    page.close(verbose=False)


@pytest.fixture(scope="session")
def client(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A visitor."""
    made = make_client(address, tmp_path_factory.mktemp("downloads"))
    yield made
    made.close()


def make_client(address: str, folder: Path) -> Any:
    """Another visitor, who downloads into `folder`."""
    from gradio_client import Client

    return Client(address, verbose=False, download_files=str(folder), analytics_enabled=False)


@pytest.fixture(scope="session")
def refused(client: Any) -> Callable[..., str]:
    """Ask for something that cannot be done; the sentence that comes back."""
    from gradio_client.exceptions import AppError

    def ask(*inputs: Any, api_name: str) -> str:
        with pytest.raises(AppError) as raised:
            client.predict(*inputs, api_name=api_name)
        return str(raised.value)

    return ask
