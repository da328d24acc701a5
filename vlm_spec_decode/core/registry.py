"""Things by name that this package and others can add to: strategies, robots.

What is registered is an object, or the text "MODULE:ATTRIBUTE" of where it is, which is imported at its first
use. So the names alone, which help texts and launch files show, import nothing heavy. Entry points of other
packages are read once, at the first look.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from vlm_spec_decode.core.errors import ConfigError

Item = TypeVar("Item")

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
log = logging.getLogger(__name__)


class Registry(Mapping[str, Item], Generic[Item]):
    """Names to items, in the order of registration.

    `noun` is what messages call an item, `attribute` the name that "MODULE" alone stands for, and `group` the
    group of entry points; empty: none. A subclass says which object is an item (`_check`).
    """

    def __init__(self, noun: str, attribute: str, group: str = "") -> None:
        self._sources: dict[str, Item | str] = {}
        self._noun, self._attribute, self._group = noun, attribute, group
        self._reading = threading.Lock()

    def _check(self, name: str, found: object) -> Item | None:
        """Return `found` if it is an item of this name, else None."""
        raise NotImplementedError

    def add(self, name: str, source: Item | str) -> None:
        """Make an item known; to register the same twice does nothing.

        Raises ConfigError if the name is taken by another one or cannot be one.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{self._noun} name {name!r}: small letters, digits and _, at most 40, a letter first"
            )
        known = self._sources.get(name, source)
        if not self._is_same(known, source):
            raise ConfigError(f"there is already a {self._noun} {name!r}: give the new one another name")
        self._sources[name] = source if isinstance(known, str) else known

    def find(self, name: str) -> Item:
        """Return the item called `name`. Raises ConfigError that names the known ones."""
        if name not in self:
            raise ConfigError(f"unknown {self._noun} {name!r}; known: {', '.join(self)}")
        return self[name]

    def __getitem__(self, name: str) -> Item:
        """Return the item, importing its module if need be.

        Raises KeyError for an unknown name, ConfigError if the module has no such item.
        """
        source = self._found()[name]
        if isinstance(source, str):
            source = self._sources[name] = self._load(name, source)
        return source

    def __contains__(self, name: object) -> bool:
        """Tell whether the name is known; imports no item."""
        return name in self._found()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names; imports no item."""
        return iter(tuple(self._found()))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._found())

    def _found(self) -> dict[str, Item | str]:
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
                # Another package's fault must not keep a robot from starting with what is ours.
                log.warning("entry point %s of %s is left out: %s", point.value, self._group, error)

    def _is_same(self, known: Item | str, new: Item | str) -> bool:
        """Tell whether both are one item, also where a module registers what an entry point has named."""
        if isinstance(known, str) == isinstance(new, str):
            return known == new
        where, found = (known, new) if isinstance(known, str) else (new, known)
        assert isinstance(where, str)
        module, attribute = self._parts(where)
        return getattr(sys.modules.get(module), attribute, None) is found

    def _parts(self, source: str) -> tuple[str, str]:
        """Return module and attribute of `MODULE:ATTRIBUTE`."""
        module, _, attribute = source.partition(":")
        return module.strip(), attribute.strip() or self._attribute

    def _load(self, name: str, source: str) -> Item:
        """Import `MODULE:ATTRIBUTE`. Raises ConfigError that names both if that is no item of this name."""
        module, attribute = self._parts(source)
        try:
            found = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # a module of somebody else may raise anything
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"{self._noun} {name!r} cannot be imported from {source}: {why}") from error
        item = self._check(name, found)
        if item is None:
            raise ConfigError(f"{self._noun} {name!r}: {source} is no {self._noun} of this name")
        return item
