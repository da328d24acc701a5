"""The machine that weights are put on: its devices, its memory, and fewer bits for the language layers.

Fewer bits come from optional libraries, torchao or bitsandbytes: only linear layers of the decoder stack are
touched; vision tower, projector and head stay exact. Knows no checkpoint and no family.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vlm_spec_decode.core import extras
from vlm_spec_decode.core.errors import ModelError, OutOfMemory

LOADING_ADVICE = "dtype=bfloat16, quantize=int8 or bnb4, device=auto, or a smaller model"
_MEMORY_WORDS = (
    "can't allocate",
    "could not allocate",
    "cannot allocate",
    "not enough memory",
    "out of memory",
)


def check_device(name: str) -> None:
    """Raise ModelError if there is no such device here, saying what to install or to look at.

    `name` is one that `LoadOptions` accepts; "auto" takes what there is.
    """
    kind, _, number = name.partition(":")
    if kind in ("cpu", "auto"):
        return
    if kind == "cuda":
        _check_cuda(name, int(number or 0))
    elif kind == "mps":
        if not torch.backends.mps.is_available():
            raise ModelError("device mps: there is no Apple GPU here; use cpu or cuda")
    else:
        _check_other(name, kind, int(number or 0))


def free_bytes(name: str) -> int | None:
    """Return the free memory of a device in bytes; None where it is not known."""
    kind, _, number = name.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        free, _ = torch.cuda.mem_get_info(int(number or 0))
        return int(free)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines() if kind == "cpu" else []
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def _check_cuda(name: str, number: int) -> None:
    if torch.version.cuda is None and torch.version.hip is None:
        version = torch.__version__.partition("+")[0]
        raise ModelError(
            f"device {name}: torch finds no GPU: {torch.__version__} is a CPU build; install one with CUDA: "
            f"pip install --force-reinstall torch=={version} "
            "--index-url https://download.pytorch.org/whl/cu126 (a Jetson: NVIDIA's own wheel)"
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number >= count:
        there = f"finds {', '.join(f'cuda:{i}' for i in range(count))}" if count else "finds no GPU"
        raise ModelError(f"device {name}: torch {there}; look at nvidia-smi and CUDA_VISIBLE_DEVICES")


def _check_other(name: str, kind: str, number: int) -> None:
    library = getattr(torch, kind, None)
    count = library.device_count() if library is not None and library.is_available() else 0
    if number >= count:
        raise ModelError(
            f"device {name}: this torch ({torch.__version__}) sees no such device; use cpu or cuda"
        )


def to_device(values: npt.NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """Copy from the host to a device; a GPU's copy is queued behind its work, and the host does not wait.

    Only pinned memory allows that. torch keeps a pinned block until the copies from it have been made.
    """
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_host(values: Tensor) -> npt.NDArray[Any]:
    """Copy a tensor to the host, which waits for all the work that the device has: ask seldom, for all."""
    return np.asarray(values.cpu().numpy())


def queue_to_host(values: Tensor) -> Callable[[], npt.NDArray[Any]]:
    """Begin to copy a tensor to the host; return what waits for it and gives it."""
    if values.device.type != "cuda":
        return partial(to_host, values)
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def wait() -> npt.NDArray[Any]:
        copied.synchronize()
        return np.asarray(host.numpy())

    return wait


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


def library_config(kind: str, dtype: Any, exact: tuple[str, ...]) -> Any:
    """Return the config for Transformers, None unless bitsandbytes is to quantize while loading.

    `exact` are names of modules that stay as they are.
    """
    if not kind.startswith("bnb"):
        return None
    require("bitsandbytes", f"quantize={kind}")
    require("accelerate", f"quantize={kind}")
    from transformers import BitsAndBytesConfig

    kept = list(exact)
    if kind == "bnb8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )


def quantize(stack: nn.Module, kind: str) -> None:
    """Quantize the linear layers of a loaded decoder stack in place, if `kind` is torchao's."""
    if kind == "int8":
        library = require("torchao.quantization", f"quantize={kind}")
        library.quantize_(stack, library.Int8WeightOnlyConfig())


def require(module: str, why: str) -> ModuleType:
    """Return an optional module. Raises ModelError that says what needs it and how to install it."""
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ModelError(f"{why} needs {package}, which is not installed: {extras.install_command('large')}")
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(f"{why} needs {package}, which does not load here: {error}") from error
