"""A checkpoint's files, and what is built from each: tokenizer, exits, calibration, the ends of an answer.

A checkpoint is a folder, or comes from the Hub. A pickle is only ever read as tensors. Whatever is wrong with
a file becomes a ModelError of one line. What differs between families is in `models.families`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig

from vlm_spec_decode.core.disk_cache import FileIdentities, kept_by_files
from vlm_spec_decode.core.errors import ModelError, ModelNotFound, VocabularyMismatch
from vlm_spec_decode.core.load_progress import Load, current_load
from vlm_spec_decode.decoding.early_exit import Bins, ExitCalibration
from vlm_spec_decode.models.hardware import memory_named
from vlm_spec_decode.models.places import folder_of
from vlm_spec_decode.models.prompt import CHAT_TEMPLATE, PromptStyle
from vlm_spec_decode.models.subword import is_subword
from vlm_spec_decode.models.tokenizer import TokenizerCodec, collector_paused, count_hidden

if TYPE_CHECKING:
    from vlm_spec_decode.models.engines.base import LoadOptions

EXITS_FILE = "exits.safetensors"
"""Optional beside the weights: `layers.<n>.weight` [width, width] and `layers.<n>.bias` per exit layer."""

CALIBRATION_FILE = "exits.json"
"""Optional beside them: how often an exit that is so sure has been right, written by `vsd train exits`."""

TRAINING_RECORD = "training.json"
"""What `vsd train` leaves beside the weights: the mark of a model that knows the action language."""

TENSORS, HASH = "tensors", "hash"
"""The parts of a load that take long, as `core.load_progress` counts them."""

_FINGERPRINT_VERSION = 1
_FINGERPRINT_CHARACTERS = 16

_TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
_VOCABULARY_FILES = frozenset({"tokenizer.json", "vocab.json", "vocab.txt", "tekken.json"})
_VOCABULARY_SUFFIXES = frozenset({".model", ".tiktoken"})
_HUB_FILES = (*_TOKENIZER_FILES, "*.safetensors")

TRANSFORMERS_LOCK = threading.Lock()
"""Held while Transformers builds a network, in whatever part of the program.

It sets torch's default number format and replaces functions of it meanwhile; two that do so at once leave
its classes changed for good."""

_READ_FROM: WeakKeyDictionary[Any, FileIdentities] = WeakKeyDictionary()
"""The files that tokenizers were read from, as they were before that."""


@contextmanager
def named(name: str) -> Iterator[None]:
    """Turn what loading can raise into a ModelError of one line that names the checkpoint."""
    try:
        with memory_named():
            yield
    except VocabularyMismatch:
        raise  # it names both checkpoints
    except ModelError as error:
        kind = ModelNotFound if isinstance(error, ModelNotFound) else ModelError
        raise kind(f"cannot load {name}: {error}") from error
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        RuntimeError,
        ImportError,
        SafetensorError,
        UnpicklingError,
    ) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot load {name}: {reason}") from error


def resolve(path_or_id: str | Path, revision: str | None, pickles: bool = False) -> Path:
    """Return the checkpoint's folder, downloaded first if it is a Hub id; `pickles` asks for *.bin too."""
    if (folder := folder_of(path_or_id)) is not None:
        return folder
    name = str(path_or_id)
    files = [*_HUB_FILES, *(["*.bin"] if pickles else [])]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelNotFound(
            f"there is no folder {name}, and the Hub does not give it: {type(error).__name__}"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json. Raises ModelNotFound if there is none, ModelError if it is no JSON object."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelNotFound(f"no readable config.json: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"config.json is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError("config.json holds no settings")
    return config


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights: safetensors if there are any, else pickles; shards by the index.

    Raises ModelError if a shard that the index names is not there, or a file is cut off.
    """
    files = _weight_files(folder)
    for path in files:
        if path.suffix == ".safetensors":
            _check_whole(path)
    return files


def _check_whole(path: Path) -> None:
    """Raise ModelError if a file of safetensors is shorter than its header says, as a broken download is."""
    size = path.stat().st_size
    with path.open("rb") as file:
        # The format: the header's length in 8 bytes, the header as JSON, the tensors at its offsets.
        start = 8 + int.from_bytes(file.read(8), "little")
        whole = start
        if start <= size:
            try:
                header = json.loads(file.read(start - 8))
                whole += max((each["data_offsets"][1] for each in _tensors_of(header)), default=0)
            except (ValueError, KeyError, TypeError, IndexError):
                return  # no header at all: the library that reads the file says what it is
    if whole > size or size < 8:
        raise ModelError(f"{path.name} is cut off: {size} bytes of {max(8, whole)}; download it again")


def _tensors_of(header: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for name, entry in header.items() if name != "__metadata__"]


def _weight_files(folder: Path) -> list[Path]:
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
    """Return a hash of configuration and weights: what was loaded, wherever it came from.

    Hashing gigabytes takes long, so the hash is kept on disk by the files' identity.
    """
    files: list[Path] = []
    for folder in folders:
        weights = {*folder.glob("*.safetensors"), *weight_files(folder), *folder.glob("mm_projector.bin")}
        files += sorted({folder / "config.json", *weights})
    hashed = partial(_hashed, files, current_load())
    seen = FileIdentities.of(files)
    return kept_by_files("fingerprint", _FINGERPRINT_VERSION, seen, "", hashed, _FINGERPRINT_CHARACTERS)


def _hashed(files: list[Path], load: Load) -> str:
    """Read files and return the hash of their names and bytes."""
    digest, hashed, total = hashlib.sha256(), 0, sum(path.stat().st_size for path in files)
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                hashed += len(block)
                load.advance(HASH, hashed / total)
    return digest.hexdigest()[:_FINGERPRINT_CHARACTERS]


def _is_zip(path: Path) -> bool:
    """Tell torch's present format, which can be mapped, from the one before 1.6."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """What is to be loaded: its folder, how, and what its config.json says."""

    folder: Path
    options: LoadOptions
    raw: dict[str, Any]


def load_tokenizer(folder: Path, **settings: Any) -> Any:
    """Return the tokenizer of a folder with its chat template; `settings` go to Transformers."""
    found = {path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()}
    if not any(p.name in _VOCABULARY_FILES or p.suffix in _VOCABULARY_SUFFIXES for p in folder.iterdir()):
        raise ModelError("its folder holds no tokenizer, such as tokenizer.json or tokenizer.model")
    files = FileIdentities.of(sorted(found))
    with collector_paused():
        tokenizer = AutoTokenizer.from_pretrained(folder, **settings)
    _READ_FROM[tokenizer] = files
    template = folder / "chat_template.json"
    if not tokenizer.chat_template and template.is_file():  # where older processors keep it
        tokenizer.chat_template = json.loads(template.read_text())["chat_template"]
    return tokenizer


def load_exits(
    source: CheckpointSource, config: Any, depth: int, head: Tensor
) -> dict[int, nn.Linear | None]:
    """Return exit layers, each with its adapter: trained ones, those of the config, those asked for.

    `depth` is the number of layers, `head` the LM head's weight [vocab, width]. Raises ModelError.
    """
    layers = {int(layer) for layer in getattr(config, "exit_layers", None) or ()}
    path = source.folder / EXITS_FILE
    tensors = load_file(path) if path.is_file() else {}
    layers |= {int(key.split(".")[1]) for key in tensors}
    if not all(0 < layer < depth for layer in layers):
        raise ModelError(f"exit layers {sorted(layers)} do not lie within {depth} layers")
    asked = {round(depth * percent / 100) for percent in source.options.exits}
    layers |= {layer for layer in asked if 0 < layer < depth}
    return {layer: _adapter(tensors, layer, head) for layer in sorted(layers)}


def load_calibration(folder: Path) -> ExitCalibration:
    """Return how far the exits of a folder can be believed; without such a file nothing is known of it."""
    path = folder / CALIBRATION_FILE
    if not path.is_file():
        return ExitCalibration()
    try:
        layers = json.loads(path.read_text(encoding="utf-8"))["layers"]
        return ExitCalibration({int(layer): _bins(row["by_confidence"]) for layer, row in layers.items()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"its {CALIBRATION_FILE} is no calibration of exits: {error!r}") from error


def _bins(rows: list[dict[str, Any]]) -> Bins:
    """Return the bins that anything fell into."""
    return tuple((float(row["to"]), float(row["agrees"])) for row in rows if row["agrees"] is not None)


def _adapter(tensors: dict[str, torch.Tensor], layer: int, like: torch.Tensor) -> nn.Linear | None:
    weight, bias = tensors.get(f"layers.{layer}.weight"), tensors.get(f"layers.{layer}.bias")
    if weight is None:
        return None
    adapter = nn.Linear(like.shape[1], like.shape[1], bias=bias is not None)
    adapter.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return adapter.to(like.device, like.dtype).requires_grad_(False)


def prompt_style(source: CheckpointSource, tokenizer: Any) -> PromptStyle:
    """Return how this checkpoint is told an instruction; the tiny models' tokenizer tells theirs."""
    if source.options.prompt != "auto":
        return PromptStyle(source.options.prompt)
    if not ((source.folder / TRAINING_RECORD).is_file() or tokenizer.chat_template == CHAT_TEMPLATE):
        return PromptStyle.ACTIONS
    return PromptStyle.AMOUNTS if is_subword(tokenizer) else PromptStyle.BARE


def generation_ends(folder: Path) -> list[int]:
    """Return the ids that end an answer by generation_config.json, none without that file."""
    if not (folder / "generation_config.json").is_file():
        return []
    stop = GenerationConfig.from_pretrained(folder).eos_token_id
    return stop if isinstance(stop, list) else [stop] if stop is not None else []


def load_codec(folder: Path, tokenizer: Any) -> TokenizerCodec:
    """Return the codec of what is spoken; generation config and tokenizer name the ids that end it."""
    ids = set(generation_ends(folder))
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    stop_ids = tuple(sorted(ids))
    hidden = count_hidden(tokenizer, stop_ids)
    return TokenizerCodec(tokenizer, stop_ids, hidden, _READ_FROM.get(tokenizer))
