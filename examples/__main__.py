"""All examples one after another in one process, on the models that come along: `python examples`."""

import runpy
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    for file in sorted(HERE.glob("[0-9]*.py")):
        print(f"== examples/{file.name}")
        runpy.run_path(str(file))["main"]()


if __name__ == "__main__":
    main()
