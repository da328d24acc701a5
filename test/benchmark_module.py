"""Modules of `benchmarks/`, which import each other as the scripts that they are."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

FOLDER = str(Path(__file__).parents[1] / "benchmarks")


def benchmark(name: str) -> ModuleType:
    """Return a module of `benchmarks/`, with the folder on the path only while it is imported."""
    sys.path.insert(0, FOLDER)
    try:
        return import_module(name)
    finally:
        sys.path.remove(FOLDER)
