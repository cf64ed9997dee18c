"""`vlm-eff demo` where it cannot begin: a sentence, before anything is served."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vlm_eff.cli.app import app
from vlm_eff.core.errors import InputError
from vlm_eff.demo.page.app import open_page


def test_a_place_where_nothing_can_listen_is_refused(desk: Any) -> None:
    with pytest.raises(InputError, match="cannot be served at"):
        open_page(desk, host="999.1.1.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="free port"):
            open_page(desk, port=taken.getsockname()[1])


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--model", "/nowhere"], 1, "no folder with a config.json"),
        (["--diffusion", "/nowhere"], 1, "cannot load '/nowhere' as a diffusion pipeline"),
        (["--offer", "fastw"], 2, "Did you mean"),
        (["--offer", "none.json"], 2, "no preset"),
        (["--port", "0"], 2, "greater than"),
    ],
)
def test_wrong_options_are_refused(options: list[str], code: int, words: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["demo", *options])
    assert found.exit_code == code, found.output
    assert words in found.stderr
