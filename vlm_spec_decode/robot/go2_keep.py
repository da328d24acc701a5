"""What the DDS library may still call into is kept alive here, for as long as it may.

cyclonedds frees the callbacks of a reader or writer that Python's cyclic collector takes, but not the
reader itself (`Entity.__del__` looks its own weak reference up, which the collector has cleared by then):
the next sample, or the next writer that leaves, calls freed memory and the process dies. The SDK's clients
are such cycles and cannot be closed. So a client, once made, lives as long as the process and is lent
again; a subscriber lives until it has been closed by name.
"""

from __future__ import annotations

import threading
from typing import Any, TypeVar

from unitree_sdk2py.core.channel import ChannelFactory, ChannelSubscriber

Client = TypeVar("Client")

_ATTRIBUTE = "vsd_kept"
_LOCK = threading.Lock()


class _Kept:
    """All of it, hung on the SDK's own singleton, whose participant it belongs to."""

    def __init__(self) -> None:
        self.idle: dict[type, list[Any]] = {}
        self.lent: list[Any] = []
        self.subscribers: list[ChannelSubscriber] = []


def borrow(kind: type[Client], timeout_s: float) -> Client:
    """Return a client of the SDK that nobody uses; a new one takes 0.7 s, nearly all of it sleep.

    `ChannelFactory` must have joined a network.
    """
    with _LOCK:
        idle = _kept().idle.get(kind)
        client: Any = idle.pop() if idle else None
    is_new = client is None
    if is_new:
        client = kind()
    client.SetTimeout(timeout_s)
    if is_new:
        client.Init()
    with _LOCK:
        _kept().lent.append(client)
    lent: Client = client
    return lent


def give_back(client: Any) -> None:
    """Let others use a client of `borrow`; one that is not lent is ignored."""
    with _LOCK:
        kept = _kept()
        others = [one for one in kept.lent if one is not client]
        if len(others) < len(kept.lent):
            kept.lent = others
            kept.idle.setdefault(type(client), []).append(client)


def keep(subscriber: ChannelSubscriber) -> None:
    """Hold a subscriber until `close`."""
    with _LOCK:
        _kept().subscribers.append(subscriber)


def close(subscriber: ChannelSubscriber) -> None:
    """Close a subscriber of `keep`, which frees reader and callbacks in the right order."""
    subscriber.Close()
    with _LOCK:
        kept = _kept()
        kept.subscribers = [one for one in kept.subscribers if one is not subscriber]


def _kept() -> _Kept:
    factory = ChannelFactory()
    kept: _Kept | None = getattr(factory, _ATTRIBUTE, None)
    if kept is None:
        kept = _Kept()
        setattr(factory, _ATTRIBUTE, kept)
    return kept
