"""The cloud's settings and the limits of one process.

Every list, queue and store that a robot can fill is bounded here. The settings are options of
`vsd cloud` and keys of its file. An invalid setting raises ConfigError before anything is loaded, so that
`--check-config` checks everything that needs no target model. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_spec_decode.core.config import check_ranges, read_mapping, read_values, same_as, setting
from vlm_spec_decode.core.errors import ConfigError, ModelError, ModelNotFound
from vlm_spec_decode.core.profiles import load_hardware
from vlm_spec_decode.core.types import MAX_OPEN_ANSWERS, Language
from vlm_spec_decode.models.engines.base import DEFAULT_ENGINE, LoadOptions
from vlm_spec_decode.models.registry import ENGINES
from vlm_spec_decode.models.spec import check_place, parse_spec
from vlm_spec_decode.transport import address as addresses

HTTP_AUTO, HTTP_OFF = "auto", "off"
DEFAULT_HTTP = "127.0.0.1:9464"
"""Address that `auto` uses if it is free."""
DRAFT_AUTO, DRAFT_NONE = "auto", "none"
FREE_DRAFTS = ("key", "off")
LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Limits of one server protocol.

    One robot may have `sessions_per_peer` answers open at a time. One more takes the place of an answer of it
    that has come to its end, or that it has not mentioned for `silent_s`; without any it is refused. Sessions
    idle longer than `idle_s` are dropped. A pass has at most `batch` answers, of which at most `fills`
    compute a prompt, so that new answers do not delay running ones. Beyond `kv_bytes` the caches of sessions
    without an event for `evict_after_s` are evicted, and computed again when they are needed. A robot that
    finds no room is asked to retry after `retry_s`. With `prices` strategies are told what the GPU's time
    costs while others wait for it (`decoding.price`).
    """

    sessions_per_peer: int = MAX_OPEN_ANSWERS
    silent_s: float = 1.0
    sessions: int = 64
    peers: int = 1024
    image_cache_bytes: int = 64 * 1024 * 1024
    image_window_bytes: int = 256 * 1024
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
    prices: bool = False


_LIMITS = ServerLimits()

MIN_PATIENCE_S, MAX_PATIENCE_S = 0.25, 30.0
"""Bounds of the patience that an edge sends: no edge can stay ahead of the others, and none starves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudConfig:
    """Where to listen, what to serve, and what to report; the fields describe each setting.

    Without `keys` only `insecure` on a loopback address is served. `language` follows from `grammar`: it is
    what answers are held to, and robots must share it.
    """

    language: Language
    bind: str = setting(f"tcp://127.0.0.1:{addresses.DEFAULT_PORT}", "tcp://HOST:PORT to listen on.")
    model: str = setting(
        "",
        "Target: DIR or ID[@REV][,dtype=…,device=…,quantize=…,exits=25/50/75]; empty: the one that ships.",
    )
    draft: str = setting(
        DRAFT_AUTO,
        "Copy of the draft beside the target: a folder, a hub id, shipped, none, or auto: the one that "
        "ships, where it fits and helps.",
    )
    keys: Path | None = setting(None, "Folder made by `vsd keys`.")
    insecure: bool = setting(False, "Plaintext, on a loopback address only.")
    fronts: bool = setting(False, "Listen for fronts (`vsd front`), which have the robots' connections.")
    revision: str | None = setting(None, "Revision of a hub id.")
    dtype: str = setting("float32", "Numbers that the target computes with.")
    device: str = setting("cpu", "Where the target runs: cpu, cuda, cuda:1; auto: a GPU if there is one.")
    engine: str = setting(DEFAULT_ENGINE, "What runs the target.", one_of=ENGINES)
    tensor_parallel: int = setting(1, "GPUs that share each layer of the target (engine vllm).", 1)
    threads: int = setting(1, "Threads of the target on a CPU.", 1)
    max_sessions: int = setting(_LIMITS.sessions, "Answers at the same time.", 1)
    robot_answers: int = setting(_LIMITS.sessions_per_peer, "Answers of one robot at the same time.", 1)
    batch: int = setting(_LIMITS.batch, "Answers in one pass.", 1)
    prices: bool = setting(
        _LIMITS.prices, "Tell `hybrid` what the GPU's time costs while others wait (docs/capacity.md)."
    )
    kv_mib: int = setting(_LIMITS.kv_bytes // 2**20, "Memory of the answers' caches.", 1)
    key_robots: int = setting(1024, "Robots that one key may stand for at a time.", 1)
    key_messages_per_s: int = setting(5000, "Messages that the robots of one key may send.", 1)
    grammar: bool = setting(True, "Hold answers to the action language.")
    free_drafts: str = setting(
        FREE_DRAFTS[0], "Draft from earlier answers to robots of the same key, or not.", one_of=FREE_DRAFTS
    )
    profile: str = setting(
        "",
        "Hardware profile, a name or a YAML file, that says how long passes take; empty: this machine.",
    )
    http: str = setting(
        HTTP_AUTO,
        "Health and metrics: loopback HOST:PORT, `off`, or `auto`: 127.0.0.1:9464, else a free port.",
    )
    log_format: str = setting("text", "Form of the log's lines.", one_of=LOG_FORMATS)
    log_level: str = setting("warning", "What is logged, from this level on.", one_of=LOG_LEVELS)
    log_content: bool = setting(False, "Put instructions into the log; images never are.")
    replicas: int = setting(0, "Copies of the target, as Ray actors; 0: one, in this process.", 0)
    replica_cpus: float = setting(1.0, "Cores of each replica.", 0)
    replica_gpus: float = setting(0.0, "GPUs of each replica.", 0)
    ray_address: str = setting("", "Ray cluster of the replicas; empty: one that is started on this machine.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontConfig:
    """Where a front listens, and which clouds are behind it; what it shares with a cloud means the same."""

    bind: str = same_as(CloudConfig, "bind")
    clouds: str = setting(
        "",
        "Addresses of the clouds behind it (`vsd cloud --fronts`), with commas; the same for all fronts.",
    )
    keys: Path | None = same_as(CloudConfig, "keys")
    insecure: bool = same_as(CloudConfig, "insecure")
    key_robots: int = same_as(CloudConfig, "key_robots")
    key_messages_per_s: int = same_as(CloudConfig, "key_messages_per_s")
    http: str = same_as(CloudConfig, "http")
    log_format: str = same_as(CloudConfig, "log_format")
    log_level: str = same_as(CloudConfig, "log_level")


def check(config: CloudConfig) -> None:
    """Check a config before anything is loaded. Raises ConfigError."""
    _check_server(config)
    if config.profile:
        load_hardware(config.profile)
    if config.ray_address and not config.replicas:
        raise ConfigError("a ray_address without replicas: give --replicas N")
    for text in (config.model, "" if config.draft in (DRAFT_AUTO, DRAFT_NONE) else config.draft):
        _check_model(text, config)


def check_front(config: FrontConfig) -> None:
    """Check a front's config. Raises ConfigError."""
    _check_server(config)
    if not config.clouds:
        raise ConfigError("no clouds behind the front: give --clouds tcp://HOST:PORT,…")
    addresses.check_cloud(config.clouds, encrypted=config.keys is not None)


def _check_server(config: CloudConfig | FrontConfig) -> None:
    """Check what every process checks that robots connect to. Raises ConfigError."""
    from vlm_spec_decode.transport.keys import cloud_keys

    check_ranges(config)
    addresses.split(config.bind)
    if config.keys:
        cloud_keys(config.keys)
    elif not config.insecure:
        raise ConfigError("no keys: give --keys DIR (`vsd keys DIR` makes them), or --insecure on loopback")
    else:
        addresses.require_loopback(config.bind)
    if config.http != HTTP_OFF:
        http_address(config.http)


def http_address(text: str) -> tuple[str, int]:
    """Return host and port of `PORT`, `HOST:PORT` or `auto`. Raises ConfigError beyond loopback."""
    text = DEFAULT_HTTP if text == HTTP_AUTO else text
    host, port = addresses.split(f"tcp://{text if ':' in text else f'127.0.0.1:{text}'}")
    if not addresses.is_loopback(f"tcp://{host if ':' not in host else f'[{host}]'}:1"):
        raise ConfigError(f"http {text!r}: figures and health are for this machine only (127.0.0.1:PORT)")
    return host, 0 if port == "*" else int(port)


def _check_model(text: str, config: CloudConfig) -> None:
    """Check the name of a model. Raises ConfigError, ModelNotFound among them."""
    try:
        options = LoadOptions(config.revision, config.dtype, config.device, engine=config.engine)
        spec = parse_spec(text, options)
        _check_device(spec.options.device, config)
        # On a cluster it is the replicas' nodes that must have the folder.
        if text and not config.ray_address:
            check_place(text, options)
    except ModelNotFound:
        raise
    except ModelError as error:
        raise ConfigError(f"model {text!r}: {error}" if text else str(error)) from error


def _check_device(name: str, config: CloudConfig) -> None:
    """Raise ModelError if torch has no such device here; on a cluster the replicas' nodes need it."""
    if name in ("cpu", "auto") or config.ray_address:
        return
    # Import torch only for another device: it takes seconds.
    from vlm_spec_decode.models.hardware import check_device

    check_device(name)


def read_file(path: Path, kind: type[CloudConfig | FrontConfig] = CloudConfig) -> dict[str, Any]:
    """Return a file's settings by name. Raises ConfigError that names the file and the key."""
    return checked(read_mapping(path), str(path), kind)


def checked(
    values: Mapping[Any, Any], where: str, kind: type[CloudConfig | FrontConfig] = CloudConfig
) -> dict[str, Any]:
    """Return `values` in the types of the config. Raises ConfigError for unknown keys and wrong types."""
    # YAML takes a bare `off` for false.
    is_off = values.get("http") is False
    return read_values(kind, {**values, "http": HTTP_OFF} if is_off else values, where)
