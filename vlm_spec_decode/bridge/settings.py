"""YAML files named by parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vlm_spec_decode.core.errors import ConfigError


def load_yaml(path: Path) -> Mapping[str, Any]:
    """Return a YAML file's mapping. Raises ConfigError naming the file and what is wrong with it."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no YAML") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: no mapping of settings")
    return values
