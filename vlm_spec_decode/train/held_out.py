"""What is held out of training, by name, read from `held_out.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Scene seeds from `first_scene_seed` on, "colour kind" pairs, and wordings with `{x}` for the object."""

    first_scene_seed: int
    pairs: frozenset[str]
    wordings: tuple[str, ...]


@cache
def held_out() -> HeldOut:
    """Return what no training may see."""
    text = resources.files("vlm_spec_decode.train").joinpath("held_out.yaml").read_text(encoding="utf-8")
    data = yaml.safe_load(text)
    return HeldOut(int(data["first_scene_seed"]), frozenset(data["pairs"]), tuple(data["wordings"]))
