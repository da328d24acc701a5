"""One check of `vsd doctor` and its outcome."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, whether it will do, what there is, and what to do about it.

    `advice` is one thing to do next; with it a finding that will do is a warning.
    """

    name: str
    is_ok: bool
    detail: str
    advice: str = ""

    @property
    def level(self) -> str:
        """`ok`, `warn` or `FAIL`."""
        return "FAIL" if not self.is_ok else "warn" if self.advice else "ok"
