import pytest

pytest.importorskip("av", reason="needs vlm-eff[video]")
