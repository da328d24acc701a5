"""JSON as every other reader takes it: NaN and infinity, which Python would write, become null.

Odometry, ranges and figures may hold such numbers; a browser, or a client in another language, refuses the
whole text for one of them.
"""

from __future__ import annotations

import json
import math
from typing import Any


def dumps(value: Any, *, compact: bool = False) -> str:
    """Return `value` as one line of JSON; `compact` leaves the blanks out.

    Raises TypeError for what JSON cannot hold.
    """
    separators = (",", ":") if compact else None
    try:
        return json.dumps(value, separators=separators, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), separators=separators, allow_nan=False)


def _finite(value: Any) -> Any:
    """Return a value with None for every number in it that is none."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
