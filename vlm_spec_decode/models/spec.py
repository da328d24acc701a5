"""How a checkpoint is named and loaded: a folder or Hub id with options, in one string.

    liuhaotian/llava-v1.5-7b@main,dtype=bfloat16,device=cuda,quantize=int8,exits=25/50/75

One string fits wherever a model is named: the command line, a launch argument, a ROS parameter. As source
`shipped:NAME` is a checkpoint that comes with the package. Knows no weights.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from vlm_spec_decode.core.errors import ModelError
from vlm_spec_decode.models.engines.base import DEFAULT_ENGINE, LoadOptions
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


def folder_of(path_or_id: str | Path) -> Path | None:
    """Return a checkpoint's folder, None for a Hub id. Raises ModelError for a folder that is not there."""
    folder, name = Path(path_or_id).expanduser(), str(path_or_id)
    if folder.is_dir():
        return folder
    if isinstance(path_or_id, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no folder {path_or_id}")
    return None


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
