"""The page on adaptive budgets shows code that runs."""

import re
from pathlib import Path

from tests.contracts import kit
from tests.tiny import tiny_inputs

PAGE = Path(__file__).parents[2] / "docs" / "adaptive.md"


def test_the_page_runs() -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    names: dict[str, object] = {"model": model, "inputs": {**inputs, "max_new_tokens": 2}, "print": lambda *_: None}
    exec(compile(code, str(PAGE), "exec"), names)
    for made in ("mine", "atp_style"):
        kit.differs(kit.attached(model, inputs, names[made]).logits, kit.bare(model, inputs))  # type: ignore[arg-type]
    assert names["by_mass"].stages[0].keep.mass == names["mine"].stages[0].keep.mass  # type: ignore[attr-defined]
    # the album is smaller than its budget; seven stages need a decoder deeper than the tiny ones
    assert len(names["curve"].stages) == 7  # type: ignore[attr-defined]
