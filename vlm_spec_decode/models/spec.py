"""How a checkpoint is named and loaded: a folder or Hub id with options, in one string.

    liuhaotian/llava-v1.5-7b@main,dtype=bfloat16,device=cuda,quantize=int8,exits=25/50/75

One string fits wherever a model is named: the command line, a launch argument, a ROS parameter. As source
`shipped:NAME` is a checkpoint that comes with the package. Knows no weights.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from vlm_spec_decode.core.errors import ModelError, ModelNotFound
from vlm_spec_decode.models.engines.base import DEFAULT_ENGINE, LoadOptions
from vlm_spec_decode.models.places import SHIPPED_MARK, folder_of, shipped
from vlm_spec_decode.models.registry import ENGINES


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Where a checkpoint is, and how to load it."""

    source: str
    options: LoadOptions

    def __post_init__(self) -> None:
        """Raise ModelError for an engine that is not registered."""
        name = self.options.engine
        # Other engines than the default may come from entry points, which take a while to read.
        if name != DEFAULT_ENGINE and name not in tuple(ENGINES):
            raise ModelError(f"unknown engine {name!r} (known: {', '.join(ENGINES)})")


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


def check_place(text: str, defaults: LoadOptions | None = None) -> None:
    """Check where a model is said to be, as far as that needs no library and no network.

    Raises ModelNotFound for a folder that is not there or holds no config.json, ModelError for an option that
    nobody knows. Another engine than ours may name and lay out its models as it likes.
    """
    spec = parse_spec(text, defaults or LoadOptions())
    if spec.source.startswith(SHIPPED_MARK):
        shipped(spec.source.removeprefix(SHIPPED_MARK))
        return
    if spec.options.engine != DEFAULT_ENGINE:
        return
    folder = folder_of(spec.source)
    if folder is not None and not (folder / "config.json").is_file():
        raise ModelNotFound(f"the folder {folder} holds no checkpoint: no config.json")


def _with(options: LoadOptions, settings: list[str]) -> LoadOptions:
    known = [field.name for field in fields(LoadOptions)]
    for setting in settings:
        name, equals, value = setting.strip().partition("=")
        if name not in known or not equals or not value:
            raise ModelError(f"unknown model option {setting.strip()!r} (known: {', '.join(known)})")
        found: Any = value
        if name == "exits":
            found = _percents(value)
        elif isinstance(getattr(options, name), int):
            found = _whole(name, value)
        options = replace(options, **{name: found})
    return options


def _whole(name: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ModelError(f"{name} {value!r} is no number from 1 on")
    return int(value)


def _percents(value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split("/"))
    except ValueError:
        raise ModelError(f"exits {value!r} are not percents such as 25/50/75") from None
