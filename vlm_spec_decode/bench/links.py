"""Profiles and links by name: YAML files of `config`, in a checkout or as installed, or any path."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TypeVar

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile, from_mapping
from vlm_spec_decode.core.yaml_file import read_yaml

Settings = TypeVar("Settings", HardwareProfile, LinkProfile)


def config_folder(name: str) -> Path:
    """Return `config/NAME` of the checkout or of the installation."""
    package = Path(__file__).parents[1]
    places = (package.parent / "config", Path(sys.prefix) / "share" / package.name / "config")
    for place in places:
        if (place / name).is_dir():
            return place / name
    raise ConfigError(f"no folder config/{name} beside the package nor in {places[1].parent}")


def load_hardware(name: str) -> HardwareProfile:
    """Return a hardware profile by name or path. Raises ConfigError."""
    return _load(HardwareProfile, "profiles", name)


def load_link(name: str) -> LinkProfile:
    """Return a link profile by name or path. Raises ConfigError."""
    return _load(LinkProfile, "links", name)


def _load(kind: type[Settings], folder: str, name: str) -> Settings:
    path = Path(name)
    if path.suffix != ".yaml":
        found = sorted(config_folder(folder).rglob(f"{name}.yaml"))
        if not found:
            known = sorted(p.stem for p in config_folder(folder).rglob("*.yaml"))
            raise ConfigError(f"no {folder[:-1]} {name!r}; known: {', '.join(known)}")
        path = found[0]
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: not a mapping")
    return from_mapping(kind, values, str(path))
