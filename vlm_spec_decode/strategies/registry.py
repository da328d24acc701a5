"""The strategies by name. A new one is one new file and one `register_strategy` line.

A strategy's module is imported when the strategy is first used: the names alone, which help texts, parameters
and launch arguments show, import nothing heavy. Others add theirs without touching this package: by a call of
`register_strategy`, or by an entry point, which every program of ours finds:

    [project.entry-points."vlm_spec_decode.strategies"]
    my_strategy = "my_package.my_strategy:STRATEGY"
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vlm_spec_decode.core.errors import ConfigError

if TYPE_CHECKING:
    from vlm_spec_decode.strategies.base import Strategy

DEFAULT = "hybrid"
ENTRY_POINTS = "vlm_spec_decode.strategies"
"""Group of the entry points that other packages declare."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
log = logging.getLogger(__name__)


class StrategyRegistry(Mapping[str, "Strategy"]):
    """Names to strategies, in the order of registration. Entry points are read once, at the first look."""

    def __init__(self, group: str = "") -> None:
        self._sources: dict[str, Strategy | str] = {}
        self._group = group
        self._reading = threading.Lock()

    def add(self, name: str, source: Strategy | str) -> None:
        """Register; see `register_strategy`."""
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"strategy name {name!r}: small letters, digits and _, at most 40, a letter first"
            )
        known = self._sources.get(name, source)
        if not _is_same(known, source):
            raise ConfigError(f"there is already a strategy {name!r}: give the new one another name")
        self._sources[name] = source if isinstance(known, str) else known

    def __getitem__(self, name: str) -> Strategy:
        """Return the strategy, importing its module if need be.

        Raises KeyError for an unknown name, ConfigError if the module has no such strategy.
        """
        source = self._found()[name]
        if isinstance(source, str):
            source = self._sources[name] = _load(name, source)
        return source

    def __contains__(self, name: object) -> bool:
        """Tell whether the name is known; imports no strategy."""
        return name in self._found()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names; imports no strategy."""
        return iter(tuple(self._found()))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._found())

    def _found(self) -> dict[str, Strategy | str]:
        if self._group:
            with self._reading:
                self._read_entry_points()
                self._group = ""
        return self._sources

    def _read_entry_points(self) -> None:
        from importlib.metadata import entry_points  # costs 20 ms, so not before it is needed

        for point in entry_points(group=self._group) if self._group else ():
            try:
                self.add(point.name, point.value)
            except ConfigError as error:
                # Another package's fault must not keep a robot from starting with a strategy of ours.
                log.warning("entry point %s of %s is left out: %s", point.value, self._group, error)


def _is_same(known: Strategy | str, new: Strategy | str) -> bool:
    """Tell whether both are one strategy, also where a module registers what an entry point has named."""
    if isinstance(known, str) == isinstance(new, str):
        return known == new
    where, found = (known, new) if isinstance(known, str) else (new, known)
    assert isinstance(where, str)
    module, attribute = _parts(where)
    return getattr(sys.modules.get(module), attribute, None) is found


def _parts(source: str) -> tuple[str, str]:
    """Return module and attribute of `MODULE:ATTRIBUTE`."""
    module, _, attribute = source.partition(":")
    return module.strip(), attribute.strip() or "STRATEGY"


def _load(name: str, source: str) -> Strategy:
    """Import `MODULE:ATTRIBUTE`. Raises ConfigError that names both if that is no strategy of this name."""
    from vlm_spec_decode.strategies.base import Strategy

    module, attribute = _parts(source)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module of somebody else may raise anything
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"strategy {name!r} cannot be imported from {source}: {why}") from error
    if not isinstance(found, Strategy) or found.name != name:
        raise ConfigError(f"strategy {name!r}: {source} is no Strategy of this name")
    return found


STRATEGIES = StrategyRegistry(ENTRY_POINTS)
"""All strategies; iterating gives the names and imports no strategy."""


def register_strategy(name: str, source: Strategy | str) -> None:
    """Make a strategy known under `name` to this process: engine, cloud, command line and nodes.

    `source` is the `Strategy`, or where it is, "MODULE" or "MODULE:ATTRIBUTE" (default STRATEGY), imported
    when it is first used. Edge and cloud must both know it. To register the same twice does nothing.
    Raises ConfigError if the name is taken or cannot be one.
    """
    STRATEGIES.add(name, source)


def strategy(name: str) -> Strategy:
    """Return the strategy called `name`. Raises ConfigError that names the known ones."""
    if name not in STRATEGIES:
        raise ConfigError(f"unknown strategy {name!r}; known: {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


register_strategy("autoregressive", "vlm_spec_decode.strategies.autoregressive")
register_strategy("colocated", "vlm_spec_decode.strategies.colocated")
register_strategy("speculative", "vlm_spec_decode.strategies.speculative")
register_strategy("pipelined", "vlm_spec_decode.strategies.pipelined")
register_strategy("early_exit", "vlm_spec_decode.strategies.early_exit")
register_strategy("multi_branch", "vlm_spec_decode.strategies.multi_branch")
register_strategy("hybrid", "vlm_spec_decode.strategies.hybrid.edge")
