"""CURVE keys as files. A folder made by `generate` holds both ends' keys; each end needs only its part.

::

    cloud.key            public: the robot needs it to know the cloud
    cloud.key_secret     the cloud only
    edge.key             public
    edge.key_secret      the robot only
    authorized/edge.key  public keys of the robots that the cloud serves
    robots/NAME/         what one more robot needs, made by `add_robot`
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.auth
from zmq.utils import z85

from vlm_spec_decode.core.errors import ConfigError

KEY_CHARACTERS, KEY_BYTES = 40, 32


@dataclass(frozen=True, slots=True)
class EdgeKeys:
    """What a robot needs: its own pair and the cloud's public key, all Z85."""

    public: bytes
    secret: bytes
    cloud_public: bytes


@dataclass(frozen=True, slots=True)
class CloudKeys:
    """What the cloud needs: its own pair and the folder of the public keys that it serves."""

    public: bytes
    secret: bytes
    authorized: Path


def generate(folder: Path, overwrite: bool = False) -> tuple[Path, ...]:
    """Write a fresh set of keys into `folder` (secrets readable by their owner alone)."""
    if not zmq.has("curve"):
        raise ConfigError("this ZeroMQ was built without CURVE")
    if (folder / "cloud.key_secret").exists() and not overwrite:
        raise ConfigError(f"{folder} holds keys already; generating new ones would lock robots out")
    copy = folder / "authorized" / "edge.key"
    written = [folder / f"{name}{end}" for name in ("cloud", "edge") for end in (".key", ".key_secret")]
    with _all_or_none(*written, copy):
        copy.parent.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        for name in ("cloud", "edge"):
            _make_pair(folder, name)
        copy.write_bytes((folder / "edge.key").read_bytes())
    return (*written, copy)


def add_robot(folder: Path, name: str) -> tuple[Path, ...]:
    """Make a pair for one more robot, in a folder of its own to take there, and authorise it.

    A running cloud accepts it at once, until `authorized/NAME.key` is removed. Raises ConfigError.
    """
    if not name.isidentifier() or not (folder / "authorized").is_dir():
        raise ConfigError(
            f"{name!r} is no name for a robot, or {folder} holds no keys (`vsd keys` makes them)"
        )
    own = folder / "robots" / name
    if own.exists():
        raise ConfigError(f"{own} exists; take it and authorized/{name}.key away to make new keys")
    cloud, authorized = own / "cloud.key", folder / "authorized" / f"{name}.key"
    with _all_or_none(own, authorized):
        own.mkdir(parents=True, mode=0o700)
        public, secret = _make_pair(own, "edge")
        cloud.write_bytes((folder / "cloud.key").read_bytes())
        authorized.write_bytes(public.read_bytes())
    return secret, cloud, authorized


def _make_pair(folder: Path, name: str) -> tuple[Path, Path]:
    public, secret = (Path(p) for p in zmq.auth.create_certificates(str(folder), name))
    secret.chmod(0o600)
    return public, secret


@contextmanager
def _all_or_none(*made: Path) -> Iterator[None]:
    """Remove the files and folders again if one cannot be written. Raises ConfigError."""
    try:
        yield
    except OSError as error:
        for path in made:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        raise ConfigError(f"no keys were made: {error}") from error


def edge_keys(folder: Path) -> EdgeKeys:
    """Read a robot's keys. Raises ConfigError that names the missing file."""
    public, secret = _load(folder / "edge.key_secret")
    cloud_public, _ = _load(folder / "cloud.key")
    if secret is None:
        raise ConfigError(f"{folder / 'edge.key_secret'} holds no secret key")
    return EdgeKeys(public, secret, cloud_public)


def cloud_keys(folder: Path) -> CloudKeys:
    """Read the cloud's keys. Raises ConfigError that names the missing file."""
    public, secret = _load(folder / "cloud.key_secret")
    if secret is None:
        raise ConfigError(f"{folder / 'cloud.key_secret'} holds no secret key")
    if not (folder / "authorized").is_dir():
        raise ConfigError(f"{folder / 'authorized'}: no such folder; it lists the robots that are served")
    return CloudKeys(public, secret, folder / "authorized")


def read_public(path: Path) -> str:
    """Return the public key in a file. Raises ConfigError for a cut-off key or none, OSError as `open`."""
    public, _ = _parse(path)
    return public.decode("ascii")


def _load(path: Path) -> tuple[bytes, bytes | None]:
    try:
        return _parse(path)
    except (OSError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}; `vsd keys` makes a set") from error


def _parse(path: Path) -> tuple[bytes, bytes | None]:
    with path.open("rb"):
        pass  # pyzmq would raise the same error for every cause
    try:
        public, secret = zmq.auth.load_certificate(path)
    except (ValueError, IndexError) as error:
        raise ConfigError("no public key in it") from error
    for key in (public, secret):
        if key is not None and not _is_key(key):
            raise ConfigError(f"half a key or none: {len(key)} of {KEY_CHARACTERS} characters")
    return public, secret


def _is_key(key: bytes) -> bool:
    """Return whether these are 32 bytes in Z85; a copy that was cut off is not."""
    try:
        return len(key) == KEY_CHARACTERS and len(z85.decode(key)) == KEY_BYTES
    except (ValueError, KeyError, struct.error):
        return False
