"""Where the files lie that come with the package: models, recorded questions, a sample bag."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parents[1] / "assets"
"""Folder of them all."""
