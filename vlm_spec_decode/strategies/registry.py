"""The strategies by name."""

from __future__ import annotations

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.strategies import (
    autoregressive,
    colocated,
    early_exit,
    multi_branch,
    pipelined,
    speculative,
)
from vlm_spec_decode.strategies.base import Strategy
from vlm_spec_decode.strategies.hybrid import edge as hybrid

STRATEGIES: dict[str, Strategy] = {
    s.name: s
    for s in (
        autoregressive.STRATEGY,
        colocated.STRATEGY,
        speculative.STRATEGY,
        pipelined.STRATEGY,
        early_exit.STRATEGY,
        multi_branch.STRATEGY,
        hybrid.STRATEGY,
    )
}

DEFAULT = "hybrid"


def strategy(name: str) -> Strategy:
    """Return the strategy called `name`. Raises ConfigError that names the known ones."""
    try:
        return STRATEGIES[name]
    except KeyError:
        raise ConfigError(f"unknown strategy {name!r}; known: {', '.join(STRATEGIES)}") from None
