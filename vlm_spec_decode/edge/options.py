"""The command line options of how an answer is decoded, the same for every command; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from vlm_spec_decode.strategies.registry import DEFAULT, STRATEGIES

Function = TypeVar("Function", bound=Callable[..., Any])


class StrategyName(click.ParamType):  # type: ignore[type-arg]
    """Name of a strategy. Help shows those that are registered; whoever uses a name checks it."""

    name = "strategy"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        """Return the names, as help shows a choice."""
        return f"[{'|'.join(STRATEGIES)}]"


def strategy_option(*names: str, **changes: Any) -> Callable[[Function], Function]:
    """Return the option `--strategy` as a decorator; `changes` are arguments of `click.option`."""
    default = (DEFAULT,) if changes.get("multiple") else DEFAULT
    usual = {"default": default, "show_default": True, "help": "How edge and cloud decode."}
    return click.option("--strategy", *names, type=StrategyName(), **{**usual, **changes})


def strategies_metavar(*more: str) -> str:
    """Return how help shows a list of names: those that are registered, and `more`."""
    return f"[{'|'.join((*STRATEGIES, *more))}],…"
