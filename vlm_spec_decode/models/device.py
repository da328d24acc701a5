"""Whether torch has the requested device, checked before anything is loaded onto it."""

from __future__ import annotations

import torch

from vlm_spec_decode.core.errors import ModelError


def check_device(name: str) -> None:
    """Raise ModelError if there is no such device here, saying what to install or to look at.

    `name` is one that `models.spec` knows; "auto" takes what there is.
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
