"""Lets vLLM import torchvision's CUDA build beside a torch without CUDA: a registry may have no other build.

Such a torchvision has no compiled operators and fails when it names two of them. vLLM prepares pictures
with it and calls neither. Their names are declared just before torchvision is imported, in each process that
vLLM starts: `vllm_process` puts `install` into their `sitecustomize`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence as Seq
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

OPERATORS = ("nms", "qnms")
SITECUSTOMIZE = f"from {__name__} import install\ninstall()\n"


class DeclaresOperators(MetaPathFinder):
    """Finds nothing, but is asked first for torchvision."""

    def find_spec(
        self,
        fullname: str,
        path: Seq[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Declare the operators if torchvision is about to be imported without them."""
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare()
        return None


def install() -> None:
    """Be asked from now on."""
    sys.meta_path.insert(0, DeclaresOperators())


def _declare() -> None:
    from importlib.metadata import version

    import torch

    if torch.version.cuda is None and "+cpu" not in version("torchvision"):
        for name in OPERATORS:
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou) -> Tensor")
