"""Addresses of the cloud, and the rule that plaintext stays on the loopback interface."""

from __future__ import annotations

import ipaddress
import re

from vlm_spec_decode.core.errors import ConfigError

_TCP = re.compile(r"tcp://(?P<host>\[[0-9a-fA-F:]+\]|[^:/\s\[\]]+):(?P<port>\d{1,5}|\*)")


def split(address: str) -> tuple[str, str]:
    """Return host and port of `tcp://HOST:PORT`. Raises ConfigError."""
    match = _TCP.fullmatch(address)
    if not match or (match["port"] != "*" and not 0 < int(match["port"]) < 65536):
        raise ConfigError(f"{address!r} is no address of the form tcp://HOST:PORT")
    return match["host"].strip("[]"), match["port"]


def split_list(text: str) -> tuple[str, ...]:
    """Return the addresses in a list with commas, each once. Raises ConfigError."""
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for one in found:
        split(one)
    return found


def check_cloud(text: str, *, encrypted: bool) -> tuple[str, ...]:
    """Return the clouds in a list with commas. Raises ConfigError, also for plaintext beyond loopback."""
    found = split_list(text)
    for one in found if not encrypted else ():
        require_loopback(one)
    return found


def is_loopback(address: str) -> bool:
    """Tell whether an address can only be reached from this machine."""
    host, _ = split(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_loopback(address: str) -> None:
    """Refuse plaintext beyond loopback. Raises ConfigError."""
    if not is_loopback(address):
        raise ConfigError(f"{address}: without CURVE keys only loopback is allowed")
