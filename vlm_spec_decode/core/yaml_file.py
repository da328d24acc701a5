"""YAML from people's editors: the one place where such a file is read, so that all of them fail alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlm_spec_decode.core.errors import ConfigError, VsdError
from vlm_spec_decode.core.text import text_problem

MAX_BYTES = 4_000_000


def read_yaml(path: Path, error: type[VsdError] = ConfigError) -> Any:
    """Return what a YAML file holds. Raises `error` with the file's name and what is wrong, in one line."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise error(f"{path}: larger than {MAX_BYTES} bytes, which no file of settings is")
        return parse_yaml(path.read_bytes(), str(path), error)
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror or reason})") from reason
    except ValueError as reason:  # a NUL in the name
        raise error(f"{path!s:.80}: {reason}") from reason


def parse_yaml(data: bytes, where: str, error: type[VsdError] = ConfigError) -> Any:
    """Return what YAML in UTF-8 holds; `where` begins the message of an `error`."""
    import yaml

    try:
        text = data.decode("utf-8-sig")  # some editors begin with a mark
    except UnicodeDecodeError as reason:
        line = data[: reason.start].count(b"\n") + 1
        raise error(f"{where}: line {line} is not UTF-8: byte 0x{data[reason.start]:02x}") from reason
    try:
        found = yaml.safe_load(text)
        problem = _problem(found)
    # Beside its own errors: a date that does not exist, nesting without end, a key that is a list.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as reason:
        raise error(
            f"{where}: not YAML, or no YAML that is safe to read: {' '.join(str(reason).split())}"
        ) from reason
    if problem:
        raise error(f"{where}: {problem}")
    return found


def _problem(found: Any) -> str:
    """Return what is wrong with the first text in `found` that is none: YAML's escapes can name halves."""
    if isinstance(found, str):
        return text_problem(found)
    if isinstance(found, dict):
        parts = [*found.keys(), *found.values()]
    elif isinstance(found, list):
        parts = found
    else:
        return ""
    return next(filter(None, map(_problem, parts)), "")
