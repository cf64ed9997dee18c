"""Reading with decord, in a child process: on some files it spins for ever, and hears no signal but the last."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from vlm_eff.core.errors import InputError, explain
from vlm_eff.video.broken import damaged, no_video
from vlm_eff.video.clip import Clip
from vlm_eff.video.sampling import Sampling

CHILD = Path(__file__).with_name("decord_child.py")


def read_with_decord(path: Path, sampling: Sampling, *, allow_partial: bool, timeout_s: float) -> Clip:
    """Read chosen frames with decord; see `read_video`.

    decord takes the number of frames from the file's index, so a cut file whose index was cut too (mkv) looks whole.
    """
    with tempfile.TemporaryDirectory(prefix="vlm_eff_video_") as folder, _Child(path, timeout_s) as child:
        about = child.answer()
        if "error" in about:
            raise no_video(path, about["error"])
        total = promised = int(about["total"])
        if not total:
            raise no_video(path, "it holds no frame")
        asked: dict[str, Any] = {"partial": allow_partial}
        if allow_partial:
            child.ask(asked)
            total = int(child.answer().get("read", 0))
            if not total:
                raise damaged(path, 0, promised, "nothing can be decoded")
        indices = sampling.choose(total, about["fps"])
        out = Path(folder) / "frames.npy"
        child.ask({"partial": False, "indices": indices, "out": str(out)})
        done = child.answer()
        if "error" in done:
            raise damaged(path, 0, promised, done["error"])
        frames = np.load(out, allow_pickle=False)
    return Clip(frames, tuple(indices), tuple(done["timestamps"]), about["fps"], total, promised, "decord")


class _Child:
    """The process; on time-out it is killed, and it is always waited for."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._path, self._timeout_s, self._late = path, timeout_s, False

    def __enter__(self) -> _Child:
        command = [sys.executable, str(CHILD), str(self._path)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        self._timer = threading.Timer(self._timeout_s, self._end)
        self._timer.daemon = True
        self._timer.start()
        return self

    def _end(self) -> None:
        self._late = True
        self.process.kill()

    def ask(self, question: dict[str, Any]) -> None:
        """Send one line; a child that is gone shows in its answer."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Read one line; `InputError` when the child was ended or died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            made: dict[str, Any] = json.loads(line)
            return made
        if self._late:
            got = f"decord did not finish {self._path} in {self._timeout_s:g} seconds and was ended"
        else:
            got = f"decord died on {self._path} (exit status {self.process.wait()})"
        raise InputError(explain(got, "files that decord can read", 'Use backend="av", or give a longer timeout_s'))

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
