"""Checkpoints of a training: complete or not there, and a clear error for whatever stands in their way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError

from vlm_spec_decode.core.errors import ModelError
from vlm_spec_decode.models.checkpoint import named, read_config

MEMORY_ADVICE = "a smaller --batch; the last checkpoint is kept"


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write `state`; whatever happens on the way, the old checkpoint survives until the new one is complete.

    Raises ModelError naming the cause, such as a full disk; the half of a file is removed then.
    """
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        kept = "; the one before it is as it was" if path.exists() else ""
        raise ModelError(f"cannot write checkpoint {path}: {_cause(error)}{kept}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return what was saved. Raises ModelError if the file is missing, truncated or no checkpoint."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError as error:
        raise ModelError(f"there is no checkpoint {path}") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError) as error:
        raise ModelError(f"{path} is truncated or no checkpoint; remove it to start anew") from error
    if not isinstance(state, dict) or "model" not in state:
        raise ModelError(f"{path} holds no training; remove it to start anew")
    return state


def load_finished(family: Any, folder: Path) -> Any:
    """Return a finished model of one of Transformers' classes, in float32.

    Raises ModelError if it is missing, broken, or of another architecture: Transformers would only warn of
    that, and begin with random weights.
    """
    with named(str(folder)):
        found, wanted = read_config(folder).get("model_type"), family.config_class.model_type
        if found != wanted:
            raise ModelError(f"its architecture is {found!r}, where {wanted!r} is needed")
        return family.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn what taking up a checkpoint of another model raises into a ModelError that names the file."""
    try:
        yield
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise ModelError(f"{path} is the checkpoint of another model ({_cause(error)})") from error


def _cause(error: BaseException) -> str:
    """Return the first line of what went wrong, that of the system if it lies behind it."""
    inner = error.__context__
    if isinstance(inner, OSError) and not isinstance(error, OSError):
        error = inner
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def exporting(folder: Path) -> Iterator[Path]:
    """Give a folder to write a model to; its files join `folder` when all of them are complete.

    Raises ModelError if they cannot be written; `folder` is then as it was.
    """
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in sorted(partial.iterdir()):
            path.chmod(0o644)
            path.replace(folder / path.name)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"cannot write the model to {folder}: {_cause(error)}; run it again to go on"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
