"""The cloud's settings and the limits of one process.

Every list, queue and store that a robot can fill is bounded here. A settings file is YAML, one flat
mapping. An unknown key, a value of another type and one out of range are refused by name before anything is
loaded, so that `--check-config` checks everything that needs no target model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from vlm_spec_decode.cloud.telemetry import health
from vlm_spec_decode.cloud.telemetry.logs import check_logging
from vlm_spec_decode.core.errors import ConfigError, ModelError
from vlm_spec_decode.core.types import Language
from vlm_spec_decode.core.yaml_file import read_yaml
from vlm_spec_decode.models.registry import DEFAULT_ENGINE
from vlm_spec_decode.models.spec import LoadOptions, parse_spec
from vlm_spec_decode.transport import address as addresses
from vlm_spec_decode.transport.keys import cloud_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Limits of one server protocol.

    Sessions idle longer than `idle_s` are dropped. A pass has at most `batch` answers, of which at most
    `fills` compute a prompt, so that new answers do not delay running ones. Beyond `kv_bytes` the caches of
    sessions without an event for `evict_after_s` are evicted, and computed again when they are needed. A
    robot that finds no room is asked to retry after `retry_s`.
    """

    sessions_per_peer: int = 2
    sessions: int = 64
    peers: int = 1024
    image_cache_bytes: int = 64 * 1024 * 1024
    image_window_bytes: int = 32 * 1024
    image_inbox_bytes: int = 128 * 1024 * 1024
    idle_s: float = 120.0
    batch: int = 32
    fills: int = 8
    kv_bytes: int = 4 * 1024**3
    evict_after_s: float = 0.25
    active_s: float = 3.0
    retry_s: float = 0.5
    nodes_per_answer: int = 65_536
    live_nodes: int = 512


MIN_PATIENCE_S, MAX_PATIENCE_S = 0.25, 30.0
"""Bounds of what an edge may claim for its patience: nobody can push ahead for long, nobody starves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudConfig:
    """Where to listen, what to serve, and what to tell.

    `model` is a folder or Hub id, by default the shipped target, and `engine` what runs it. `draft` names a
    copy of the draft to run beside it ("shipped" for the shipped one). Without `keys` only `insecure` on a
    loopback address is served. `language` is what answers are held to; robots must share it. `http` is
    where health and figures are read, on this machine only: "auto" moves if its port is taken, "off" is
    nowhere. `log_content` puts instructions into the log. `replicas` above 0 runs that many copies of the
    target as Ray actors, with `replica_cpus` and `replica_gpus` each, on the cluster at `ray_address` or,
    if that is empty, on one that is started here. `batch` answers share a pass at most, and their caches
    take `kv_mib` at most. One key may stand for `key_robots` at a time and send `key_messages_per_s`.
    """

    language: Language
    bind: str = "tcp://127.0.0.1:5557"
    model: str = ""
    draft: str = ""
    keys: Path | None = None
    insecure: bool = False
    revision: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    engine: str = DEFAULT_ENGINE
    threads: int = 1
    max_sessions: int = 64
    batch: int = 32
    kv_mib: int = 4096
    key_robots: int = 1024
    key_messages_per_s: int = 5000
    http: str = health.AUTO
    log_format: str = "text"
    log_level: str = "warning"
    log_content: bool = False
    replicas: int = 0
    replica_cpus: float = 1.0
    replica_gpus: float = 0.0
    ray_address: str = ""


NOT_IN_FILES = {"language"}
"""Fields that follow from others; a file says `grammar: false` to lift the grammar."""


def check(config: CloudConfig) -> None:
    """Find what is wrong with a config before anything is loaded. Raises ConfigError."""
    addresses.split(config.bind)
    if config.keys:
        cloud_keys(config.keys)
    elif not config.insecure:
        raise ConfigError("no keys: give --keys DIR (`vsd keys DIR` makes them), or --insecure on loopback")
    else:
        addresses.require_loopback(config.bind)
    if config.http != health.OFF:
        health.place(config.http)
    check_logging(config.log_format, config.log_level)
    for name in ("threads", "max_sessions", "batch", "kv_mib", "key_robots", "key_messages_per_s"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} {getattr(config, name)} is below 1")
    for name in ("replicas", "replica_cpus", "replica_gpus"):
        if not 0 <= getattr(config, name) < math.inf:
            raise ConfigError(f"{name} {getattr(config, name)} is below 0, or no number")
    if config.ray_address and not config.replicas:
        raise ConfigError("a ray_address without replicas: give --replicas N")
    for text in (config.model, config.draft):
        _check_model(text, config)


def _check_model(text: str, config: CloudConfig) -> None:
    """Find what is wrong with the name of a model. Raises ConfigError."""
    try:
        options = LoadOptions(config.revision, config.dtype, config.device, engine=config.engine)
        spec = parse_spec(text, options)
        _check_device(spec.options.device, config)
    except ModelError as error:
        raise ConfigError(f"model {text!r}: {error}" if text else str(error)) from error
    source = Path(spec.source)
    # On a cluster it is the replicas' nodes that must have the folder.
    if source.is_absolute() and not source.is_dir() and not config.ray_address:
        raise ConfigError(f"model {text!r}: there is no such folder")


def _check_device(name: str, config: CloudConfig) -> None:
    """Raise ModelError if torch has no such device here; on a cluster the replicas' nodes need it."""
    if name in ("cpu", "auto") or config.ray_address:
        return
    # Only who asks for another device waits for torch.
    from vlm_spec_decode.models.hardware import check_device

    check_device(name)


def read_file(path: Path) -> dict[str, Any]:
    """Return a file's settings by name. Raises ConfigError that names the file and the key."""
    found = read_yaml(path)
    if not isinstance(found, Mapping):
        raise ConfigError(f"{path}: a mapping of settings is expected")
    return checked(found, str(path))


def checked(values: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Return `values` in the types of the config. Raises ConfigError for unknown keys and wrong types."""
    types = {f.name: f.type for f in fields(CloudConfig) if f.name not in NOT_IN_FILES} | {"grammar": "bool"}
    unknown = sorted(str(key) for key in values if key not in types)
    if unknown:
        raise ConfigError(f"{where}: unknown key {', '.join(map(repr, unknown))}")
    read: dict[str, Any] = {}
    for key, given in values.items():
        # YAML takes a bare `off` for false.
        value = health.OFF if key == "http" and given is False else given
        try:
            read[key] = msgspec.convert(value, _TYPES[str(types[key])])
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where}: {key}: {error}") from error
    if isinstance(read.get("keys"), str):
        read["keys"] = Path(read["keys"]).expanduser()
    return read


_TYPES: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "str | None": str | None,
    "Path | None": str | None,
}
"""Types of the fields as a file gives them, by their annotation."""
