"""One check of `vsd doctor` and its outcome."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, whether it will do, and what there is or what to do about it."""

    name: str
    is_ok: bool
    detail: str
