"""Loading what is to be asked: the bundled model, a folder, or a model of the hub."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from vlm_eff.core.errors import InputError, explain
from vlm_eff.eval.subject import Subject
from vlm_eff.reference import reference_folder
from vlm_eff.reference.smol import BUILD_COMMAND, built_in, smol_folder

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_ATTENTION = ("sdpa", "eager")
# the name of the model of real weights, which is built once on a machine
_SMOL = "smol"
# name of the subject that comes along
BUNDLED = "bundled model"


def load_subject(
    name: str | None = None, *, dtype: str = "auto", device: str = "auto", attention: str = "sdpa"
) -> Subject:
    """Load a model in eval mode with its processor.

    name:  a folder, or a model id of the hub; None is the bundled model, "smol" the model of real weights that
           `vlm-eff reference build smol` built
    dtype: "auto" is float32 on a CPU and bfloat16 elsewhere; device "auto" is a GPU where there is one

    Raises:
        InputError: an unknown folder, dtype, device or attention, or files that are no vision-language model.
    """
    check_choice("attention", attention, _ATTENTION)
    place = device_of(device)
    wanted = dtype_of(dtype, place)
    source = _source(name)
    try:
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            source, dtype=wanted, attn_implementation=attention
        )
        processor = transformers.AutoProcessor.from_pretrained(source)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise _no_model(source, error) from None
    if not isinstance(processor, transformers.ProcessorMixin):
        raise InputError(
            explain(
                f"{source!r} has a {type(processor).__name__} and no processor for pictures",
                "a folder that also holds processor_config.json and preprocessor_config.json",
                "Save the processor into the folder",
            )
        )
    return Subject(model.to(place).eval(), processor, name or BUNDLED)


def load_outline(name: str | None = None, *, attention: str = "sdpa") -> Any:
    """The parts of a model on the meta device, without weights: enough to look at and to attach to, in no time.

    Raises:
        InputError: an unknown folder or attention, or files that are no vision-language model.
    """
    check_choice("attention", attention, _ATTENTION)
    source = _source(name)
    try:
        config = transformers.AutoConfig.from_pretrained(source)
        with torch.device("meta"):
            model = transformers.AutoModelForImageTextToText.from_config(config, attn_implementation=attention)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _no_model(source, error) from None
    return model.eval()


def quiet_libraries() -> None:
    """Keep progress bars and remarks of libraries off the terminal of a command that prints a result."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if importlib.util.find_spec("diffusers") is not None:
        from diffusers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()


def _no_model(source: str, error: Exception) -> InputError:
    return InputError(
        explain(
            f"cannot load {source!r} as a vision-language model ({first_line(error)})",
            "a folder written by save_pretrained with its processor, or a model id of the hub",
            "Check the name and the files",
        )
    )


def _source(name: str | None) -> str:
    if name is None:
        folder = reference_folder()
        if not (folder / "config.json").is_file():
            raise InputError(
                explain(
                    "this installation holds no bundled model",
                    "a folder or a hub id as the model",
                    "Install vlm-eff again, or name a model",
                )
            )
        return str(folder)
    if name == _SMOL:
        if not built_in(smol_folder()):
            raise InputError(
                explain(
                    f"the model {name!r} is not built on this machine, or from earlier weights",
                    "a model that was built once, into the cache folder of vlm_eff",
                    f"Run: {BUILD_COMMAND}",
                )
            )
        return str(smol_folder())
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    folder = Path(name).expanduser()
    if folder.exists() or looks_like_path:
        if not (folder / "config.json").is_file():
            raise InputError(
                explain(
                    f"{name!r} is no folder with a config.json",
                    "a folder written by save_pretrained, or a hub id such as owner/name",
                    "Check the path",
                )
            )
        return str(folder)
    return name


def dtype_of(name: str, place: torch.device) -> str:
    """The dtype that a name stands for; "auto" is float32 on a CPU and bfloat16 elsewhere."""
    check_choice("dtype", name, _DTYPES)
    return name if name != "auto" else ("float32" if place.type == "cpu" else "bfloat16")


def device_of(name: str) -> torch.device:
    """The device that a name stands for; "auto" is a GPU where there is one, under torchrun one for each process."""
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        place = os.environ.get("LOCAL_RANK")
        return torch.device("cuda" if place is None else f"cuda:{int(place) % torch.cuda.device_count()}")
    try:
        device = torch.device(name)
        # a device that torch can name may still not be there
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            explain(
                f"device {name!r} cannot be used ({first_line(error)})", "cpu, cuda, cuda:0", "Choose another device"
            )
        ) from None
    return device


def check_choice(what: str, value: str, accepted: tuple[str, ...]) -> None:
    """Raise `InputError` unless `value` is accepted."""
    if value not in accepted:
        raise InputError(explain(f"{what} {value!r}", ", ".join(accepted), "Choose one of these"))


def first_line(error: Any) -> str:
    """First line of an error, or its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
