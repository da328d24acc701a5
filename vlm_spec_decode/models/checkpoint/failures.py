"""What loading and running weights can raise, as errors of this package, one line each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError

from vlm_spec_decode.core.errors import ModelError, OutOfMemory

LOADING_ADVICE = "dtype=bfloat16, quantize=int8 or bnb4, device=auto, or a smaller model"
_MEMORY_WORDS = (
    "can't allocate",
    "could not allocate",
    "cannot allocate",
    "not enough memory",
    "out of memory",
)


@contextmanager
def named(name: str) -> Iterator[None]:
    """Turn what loading can raise into a ModelError of one line that names the checkpoint."""
    try:
        with memory_named():
            yield
    except ModelError as error:
        raise ModelError(f"cannot load {name}: {error}") from error
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        RuntimeError,
        ImportError,
        SafetensorError,
        UnpicklingError,
    ) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot load {name}: {reason}") from error


@contextmanager
def memory_named(advice: str = LOADING_ADVICE) -> Iterator[None]:
    """Turn an allocation that fails into OutOfMemory, which says what to try."""
    try:
        yield
    except Exception as error:
        # Any class: MuJoCo's FatalError, from the room of a dialogue, has no nearer base.
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory: try {advice}") from error


def _is_out_of_memory(error: Exception) -> bool:
    """Tell a failed allocation from other errors.

    torch's CPU allocator and oneDNN's engine have no class of their own for it: RuntimeError and ValueError
    with a sentence, as MuJoCo has its FatalError; a fork or a mapping that fails is an OSError.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error).lower() for words in _MEMORY_WORDS)
