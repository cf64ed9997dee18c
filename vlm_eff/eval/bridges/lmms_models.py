"""The two classes that lmms-eval loads for the model `vlm_eff`; imported by lmms-eval alone.

lmms-eval checks that a class is one of its own and whether it is for simple or for chat tasks. Neither is ever made:
both return the base backend.
"""

from __future__ import annotations

from typing import Any

from lmms_eval.api.model import lmms

from vlm_eff.eval.bridges.lmms import build


class VlmEffSimple(lmms):  # type: ignore[misc]
    """For tasks that hand over text and pictures."""

    is_simple = True

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Any:
        """The base backend's simple class, watched; see `lmms.build`."""
        return build(arg_string, additional_config, simple=True)


class VlmEffChat(lmms):  # type: ignore[misc]
    """For tasks that hand over chat messages; a base without such a class gets its simple one."""

    is_simple = False

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Any:
        """The base backend's chat class, watched; see `lmms.build`."""
        return build(arg_string, additional_config, simple=False)
