"""How a checkpoint is named and loaded: a folder or Hub id with options, in one string.

    liuhaotian/llava-v1.5-7b@main,dtype=bfloat16,device=cuda,quantize=int8,exits=25/50/75

One string fits wherever a model is named: the command line, a launch argument, a ROS parameter. As source
`shipped:NAME` is a checkpoint that comes with the package. Knows no weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from vlm_spec_decode.core.errors import ModelError
from vlm_spec_decode.models.registry import DEFAULT_ENGINE, ENGINES

DTYPE_NAMES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("none", "int8", "bnb8", "bnb4")
PROMPTS = ("auto", "bare", "actions")
_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu|npu)(:[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a checkpoint.

    `device` is torch's name of one, or "auto" to spread the layers over all that there are (accelerate).
    `quantize` stores the language layers in fewer bits: int8 by torchao, bnb8 and bnb4 (NF4) by
    bitsandbytes; vision tower and head stay as they are. `exits` are depths in percent at which final norm
    and head are read early, for a checkpoint without trained exits. `base` names the language model where
    an original LLaVA folder holds only a projector, `tower` its vision tower in place of the one in its
    config. `prompt` says whether the action language is explained ("actions") or was trained ("bare").
    `engine` names what runs the checkpoint (`models.registry`).
    """

    revision: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    quantize: str = "none"
    exits: tuple[int, ...] = ()
    base: str = ""
    tower: str = ""
    prompt: str = "auto"
    engine: str = DEFAULT_ENGINE

    def __post_init__(self) -> None:
        """Raise ModelError for a value that no loader knows."""
        _one_of("dtype", self.dtype, DTYPE_NAMES)
        _one_of("quantize", self.quantize, QUANTIZATIONS)
        _one_of("prompt", self.prompt, PROMPTS)
        if self.engine != DEFAULT_ENGINE:  # others may come from entry points, which take a while to read
            _one_of("engine", self.engine, tuple(ENGINES))
        if _DEVICE.fullmatch(self.device) is None:
            raise ModelError(f"unknown device {self.device!r} (known: cpu, cuda, cuda:0, mps, auto)")
        if not all(0 < percent < 100 for percent in self.exits):
            raise ModelError(f"exits {self.exits} are not depths between 0 and 100 percent")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Where a checkpoint is, and how to load it."""

    source: str
    options: LoadOptions


def parse_spec(text: str | Path, defaults: LoadOptions) -> ModelSpec:
    """Read `SOURCE[@REVISION][,option=value…]`; what it does not say is as in `defaults`.

    A folder that has just this name is taken as it is. Raises ModelError naming what it does not know.
    """
    if isinstance(text, Path) or Path(text).is_dir():
        return ModelSpec(str(text), defaults)
    where, *settings = text.split(",")
    source, _, revision = where.partition("@")
    if Path(where).is_dir():
        source, revision = where, ""
    if revision:
        settings.append(f"revision={revision}")
    return ModelSpec(source, _with(defaults, settings))


def _with(options: LoadOptions, settings: list[str]) -> LoadOptions:
    known = [field.name for field in fields(LoadOptions)]
    for setting in settings:
        name, equals, value = setting.strip().partition("=")
        if name not in known or not equals or not value:
            raise ModelError(f"unknown model option {setting.strip()!r} (known: {', '.join(known)})")
        found: Any = _percents(value) if name == "exits" else value
        options = replace(options, **{name: found})
    return options


def _percents(value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split("/"))
    except ValueError:
        raise ModelError(f"exits {value!r} are not percents such as 25/50/75") from None


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ModelError(f"unknown {name} {value!r} (known: {', '.join(known)})")
