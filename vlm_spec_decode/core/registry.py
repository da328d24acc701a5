"""Registries: objects by name, of this package and of others; one registry per kind, filled by `register_*`.

A name stands for an object, or for its location ("MODULE:ATTRIBUTE"). Such a module is imported when the name
is first used: the names alone, which help texts, parameters and launch arguments show, import nothing heavy.
Entry points of other packages are read once, at the first access.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, Generic, TypeVar

from vlm_spec_decode.core.errors import ConfigError

Item = TypeVar("Item")

log = logging.getLogger(__name__)


class Registry(Mapping[str, Item], Generic[Item]):
    """Names to objects of one kind, in the order of registration.

    A subclass defines the names of the kind for messages (`kind`, `expected`), the default attribute of a
    module (`attribute`), and which object is valid for a name (`fits`). `group` is that of the entry points.
    """

    kind: ClassVar[str]
    expected: ClassVar[str]
    attribute: ClassVar[str]
    form: ClassVar[re.Pattern[str]] = re.compile(r"[a-z][a-z0-9_]{0,39}")
    form_text: ClassVar[str] = "small letters, digits and _, at most 40, a letter first"

    def __init__(self, group: str = "") -> None:
        self._sources: dict[str, Item | str] = {}
        self._group = group
        self._reading = threading.Lock()

    @abstractmethod
    def fits(self, name: str, found: object) -> bool:
        """Return whether `found`, just imported, may be registered under `name`."""

    def add(self, name: str, source: Item | str) -> None:
        """Register an object, or its location. Registering the same one again does nothing.

        Raises ConfigError if the name is taken or cannot be one.
        """
        if not self.form.fullmatch(name):
            raise ConfigError(f"{self.kind} name {name!r}: {self.form_text}")
        known = self._sources.get(name, source)
        if not self._is_same(known, source):
            article = "an" if self.kind[0] in "aeiou" else "a"
            raise ConfigError(
                f"there is already {article} {self.kind} {name!r}: give the new one another name"
            )
        self._sources[name] = source if isinstance(known, str) else known

    def find(self, name: str) -> Item:
        """Return the object of this name. Raises ConfigError with the known names."""
        if name not in self:
            raise ConfigError(f"unknown {self.kind} {name!r}; known: {', '.join(self)}")
        return self[name]

    def __getitem__(self, name: str) -> Item:
        """Return the object, importing its module if necessary.

        Raises KeyError for an unknown name, ConfigError if the module has no such object.
        """
        source = self._found()[name]
        if isinstance(source, str):
            source = self._sources[name] = self._load(name, source)
        return source

    def __contains__(self, name: object) -> bool:
        """Return whether the name is known; imports nothing."""
        return name in self._found()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names; imports nothing."""
        return iter(tuple(self._found()))

    def __len__(self) -> int:
        """Return the number of names."""
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
                # A faulty package must not keep a robot from starting with the other objects.
                log.warning("entry point %s of %s is left out: %s", point.value, self._group, error)

    def _is_same(self, known: Item | str, new: Item | str) -> bool:
        """Return whether both are the same object, also where one is its location."""
        if isinstance(known, str) == isinstance(new, str):
            return known == new
        where, found = (known, new) if isinstance(known, str) else (new, known)
        module, attribute = self._parts(str(where))
        return getattr(sys.modules.get(module), attribute, None) is found

    def _parts(self, source: str) -> tuple[str, str]:
        """Return module and attribute of `MODULE:ATTRIBUTE`."""
        module, _, attribute = source.partition(":")
        return module.strip(), attribute.strip() or self.attribute

    def _load(self, name: str, source: str) -> Item:
        """Import `MODULE:ATTRIBUTE`. Raises ConfigError with both names if that is no object of this kind."""
        module, attribute = self._parts(source)
        try:
            found: Item = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # a module of another package may raise any exception
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"{self.kind} {name!r} cannot be imported from {source}: {why}") from error
        if not self.fits(name, found):
            raise ConfigError(f"{self.kind} {name!r}: {source} is no {self.expected}")
        return found
