"""What a new user does, for real: a fresh environment, the wheel and what it needs from the package index, a picture.

    make test-wheel            # or: python3.11 tests/package/fresh_environment.py FOLDER

Takes minutes and some 6 GB, mostly torch, and is therefore no test of the suite. Nothing of the repository is on the
path: programs run in an empty folder.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCENE = "from vlm_eff.reference.scenes import make_scene, render; render(make_scene(3, 'test')).save('scene.png')"
ASK = ["run", "--image", "scene.png", "--prompt", "what word is written?", "--plugin", "pyramiddrop", "--save", "kept"]
# seconds that the page may take until it answers
PAGE_TAKES = 120


class Environment:
    """A virtual environment, and an empty folder in which its programs run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "env"
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        venv.create(self.folder, with_pip=True)
        left_out = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")
        self.variables = {name: value for name, value in os.environ.items() if name not in left_out}

    def command(self, program: str, *arguments: str) -> list[str]:
        return [str(self.folder / "bin" / program), *arguments]

    def run(self, program: str, *arguments: str) -> str:
        """What a program prints; ends this one where the program fails."""
        command = self.command(program, *arguments)
        done = subprocess.run(command, cwd=self.work, env=self.variables, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{program} {' '.join(arguments)} left with {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def megabytes(self) -> int:
        """Size of all files of the environment."""
        return round(sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file()) / 1e6)


def build(folder: Path) -> Path:
    """The wheel, built apart from whatever is installed here."""
    venv.create(folder / "build", with_pip=True)
    pip = str(folder / "build" / "bin" / "pip")
    subprocess.run([pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)], check=True)
    (made,) = folder.glob("*.whl")
    return made


def page_answers(environment: Environment) -> float:
    """Seconds until the page of `vlm-eff demo` is there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    begun = time.monotonic()
    served = subprocess.Popen(
        environment.command("vlm-eff", "demo", "--port", port), cwd=environment.work, env=environment.variables
    )
    try:
        while time.monotonic() - begun < PAGE_TAKES and served.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    if answer.status == 200:
                        return time.monotonic() - begun
            except OSError:
                time.sleep(0.5)
    finally:
        served.terminate()
        served.wait()
    sys.exit(f"vlm-eff demo did not answer within {PAGE_TAKES} s")


def main(folder: Path) -> None:
    """Go the way of a new user and say how long each part takes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wheel = build(folder)
    say(f"the wheel: {wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB")
    begun = time.monotonic()
    environment = Environment(folder)
    environment.run("pip", "install", "--quiet", f"{wheel}[demo]")
    installed = time.monotonic() - begun
    say(f"installed with the page's packages: {installed:.0f} s, {environment.megabytes():,} MB")
    environment.run("python", "-c", SCENE)
    for turn in ("first", "second"):
        asked = time.monotonic()
        environment.run("vlm-eff", *ASK)
        say(f"a picture of what was dropped, {turn} time: {time.monotonic() - asked:.0f} s")
    if not list((environment.work / "kept").glob("overlay*.png")):
        sys.exit("vlm-eff run drew no picture")
    say(f"methods: {len(json.loads(environment.run('vlm-eff', 'methods', '--json')))}")
    found = json.loads(environment.run("vlm-eff", "doctor", "--json"))
    say(f"remarks of the doctor: {found['remarks'] or 'none'}")
    say(f"the page: {page_answers(environment):.0f} s until it answers")
    say(f"pip check: {environment.run('pip', 'check').strip()}")


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
