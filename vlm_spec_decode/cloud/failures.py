"""Exceptions that a job of the target may raise, and the reason that the robot gets for each."""

from __future__ import annotations

import logging

from vlm_spec_decode.core.errors import GrammarError, ImageError, NotFinite, OutOfMemory, VsdError

log = logging.getLogger(__name__)

FAILURES = (VsdError, RuntimeError, ValueError, MemoryError, ArithmeticError, LookupError)
"""What a job may raise; one answer's failure must not end the service of the others."""


def refusal(error: Exception) -> tuple[str, str]:
    """Return the name and detail by which a robot is told of a job that failed."""
    match error:
        case ImageError():
            return "image", str(error)
        case GrammarError():
            return "grammar", str(error)
        case NotFinite():
            log.error("an answer has ended: %s", error)
            return "not_finite", str(error)
        case OutOfMemory() | MemoryError():
            return "out_of_memory", "the target has no memory left for this answer"
    log.error("a job of the target failed", exc_info=error)
    return "target_failed", type(error).__name__
