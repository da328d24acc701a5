"""The cloud's log: one line a record, for people or as JSON for programs.

A record may have `fields`, a mapping of plain values, such as session and round. Instructions are in a
record only if the owner of the service has configured that; images never are.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from vlm_spec_decode.cloud.config import LOG_FORMATS, LOG_LEVELS
from vlm_spec_decode.core.errors import ConfigError

ROOT = "vlm_spec_decode"


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, then the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        document: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            document["trace"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


class TextLines(logging.Formatter):
    """The same for people: `level message key=value …`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and a traceback below it if there is one."""
        text = " ".join(f"{key}={value}" for key, value in fields_of(record).items())
        line = f"{record.levelname.lower()} {record.getMessage()} {text}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """Return the fields of a record."""
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return fields


def check_logging(style: str, level: str) -> None:
    """Raise ConfigError for an unknown style or level."""
    if style not in LOG_FORMATS:
        raise ConfigError(f"log_format {style!r}; known: {', '.join(LOG_FORMATS)}")
    if level not in LOG_LEVELS:
        raise ConfigError(f"log_level {level!r}; known: {', '.join(LOG_LEVELS)}")


def set_up_logging(style: str, level: str, stream: TextIO | None = None) -> logging.Handler:
    """Send the package's records to `stream`, by default stderr, and return the handler, for `take_down`."""
    check_logging(style, level)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if style == "json" else TextLines())
    handler.setLevel(level.upper())  # a terminal's line of a load lowers the level of that logger
    package = logging.getLogger(ROOT)
    package.addHandler(handler)
    package.setLevel(level.upper())
    return handler


@contextmanager
def logging_to_stderr(style: str, level: str) -> Iterator[None]:
    """Send the package's records to stderr for the block."""
    handler = set_up_logging(style, level)
    try:
        yield
    finally:
        take_down_logging(handler)


def take_down_logging(handler: logging.Handler) -> None:
    """Undo `set_up_logging`."""
    logging.getLogger(ROOT).removeHandler(handler)
    handler.close()
