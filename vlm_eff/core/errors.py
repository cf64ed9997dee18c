"""The errors a user can meet.

    VlmEffError
    ├── ConfigError             a plugin was given a value it cannot use
    ├── UnsupportedModelError   no adapter knows this model family
    ├── CapabilityError         the model or this call cannot carry what was asked
    ├── CompiledModelError      the model was compiled before attach: hooks would be ignored
    ├── ConflictError           two plugins, or two handles, want the same thing
    ├── InputError              a prompt, image or file cannot be used
    ├── StateError              something happened in an order that would give wrong results
    └── Stopped                 somebody stopped work that was under way

Every message says what was got, what is accepted and what to do.
"""

from __future__ import annotations


class VlmEffError(Exception):
    """Base of all errors raised by this library."""


class ConfigError(VlmEffError, ValueError):
    """A plugin, spec string or file holds a value that cannot be used."""


class UnsupportedModelError(VlmEffError, TypeError):
    """No adapter knows this model."""


class CapabilityError(VlmEffError, RuntimeError):
    """The model, its cache or this call cannot carry what a plugin needs."""


class CompiledModelError(CapabilityError):
    """The model was compiled before attach, so its hooks would silently not run."""


class ConflictError(VlmEffError, RuntimeError):
    """Two plugins write one resource, or a model already carries a handle."""


class InputError(VlmEffError, ValueError):
    """A prompt, image or file cannot be used."""


class StateError(VlmEffError, RuntimeError):
    """A cache or handle is used in an order that would give wrong results."""


class Stopped(VlmEffError):
    """Somebody stopped work that was under way; the model is as it was before."""


def explain(got: str, accepted: str, do: str) -> str:
    """Join the three parts of a message: what was got, what is accepted, what to do."""
    return f"{got.rstrip('.')}. Accepted: {accepted.rstrip('.')}. {do.rstrip('.')}."
