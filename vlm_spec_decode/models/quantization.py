"""Fewer bits for the language layers, with libraries that are optional: torchao or bitsandbytes.

Only linear layers of the decoder stack are touched; vision tower, projector and head stay exact.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

from torch import nn

from vlm_spec_decode.core.errors import ModelError


def library_config(kind: str, dtype: Any) -> Any:
    """Return the config for Transformers, None unless bitsandbytes is to quantize while loading."""
    if not kind.startswith("bnb"):
        return None
    require("bitsandbytes", f"quantize={kind}")
    require("accelerate", f"quantize={kind}")
    from transformers import BitsAndBytesConfig

    kept = ["lm_head", "vision_tower", "visual", "multi_modal_projector"]
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
        raise ModelError(f"{why} needs {package}, which is not installed: pip install {package}")
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(f"{why} needs {package}, which does not load here: {error}") from error
