"""Where a checkpoint's files come from: a folder, or the Hub; and its weights, file by file.

Knows names and formats of files, not what a tensor is for. A pickle is only ever read as tensors.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors.torch import load_file
from torch import Tensor

from vlm_spec_decode.core.errors import ModelError

_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


def resolve(path_or_id: str | Path, revision: str | None, pickles: bool = False) -> Path:
    """Return the checkpoint's folder, downloaded first if it is a Hub id; `pickles` asks for *.bin too."""
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    name = str(path_or_id)
    if isinstance(path_or_id, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no folder {path_or_id}")
    files = [*_HUB_FILES, *(["*.bin"] if pickles else [])]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"there is no folder {name}, and the Hub does not give it: {type(error).__name__}"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json. Raises ModelError if there is none or it is no JSON object."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"no readable config.json: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"config.json is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError("config.json holds no settings")
    return config


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights: safetensors if there are any, else pickles; shards by the index.

    Raises ModelError if a shard that the index names is not there.
    """
    for index, loose in (
        ("model.safetensors.index.json", "model*.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model*.bin"),
    ):
        if (folder / index).is_file():
            names = sorted(set(json.loads((folder / index).read_text())["weight_map"].values()))
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise ModelError(
                    f"{len(missing)} of {len(names)} shards are missing, the first is {missing[0]}"
                )
            return [folder / name for name in names]
        if found := sorted(folder.glob(loose)):
            return found
    return []


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file, mapped rather than read where the format allows it."""
    tensors: dict[str, Tensor]
    if path.suffix == ".safetensors":
        tensors = load_file(path)
    else:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    return tensors


def fingerprint(folders: list[Path]) -> str:
    """Return a hash of configuration and weights: what was loaded, wherever it came from."""
    digest = hashlib.sha256()
    for folder in folders:
        weights = {*folder.glob("*.safetensors"), *weight_files(folder), *folder.glob("mm_projector.bin")}
        for path in sorted({folder / "config.json", *weights}):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:16]


def _is_zip(path: Path) -> bool:
    """Tell torch's present format, which can be mapped, from the one before 1.6."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"
