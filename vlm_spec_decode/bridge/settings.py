"""YAML files named by parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.yaml_file import read_yaml


def load_yaml(path: Path) -> Mapping[str, Any]:
    """Return a YAML file's mapping. Raises ConfigError naming the file and what is wrong with it."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: no mapping of settings")
    return values
