"""What the DDS library may still call into is kept alive here, for as long as it may.

cyclonedds frees the callbacks of a reader or writer that Python's cyclic collector takes, but not the
reader itself (`Entity.__del__` looks its own weak reference up, which the collector has cleared by then):
the next sample, or the next writer that leaves, calls freed memory and the process dies. The SDK's clients
are such cycles and cannot be closed. So a client, once made, lives as long as the process and is lent
again; a subscriber lives until it has been closed by name.

Closing has a trap of its own in cyclonedds 0.10: while a callback runs it holds its reader, so a reader let
go meanwhile is deleted by the callback's own thread, which then waits for the callback, that is for itself,
and no thread receives any more. So the callback is taken away first, which waits for one under way.
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
    reader = _reader(subscriber)
    # Held until no callback runs any more: `set_listener` lets go of it first.
    listener = getattr(reader, "_listener", None)
    if reader is not None and listener is not None:
        reader.set_listener(None)
    subscriber.Close()
    del reader, listener
    with _LOCK:
        kept = _kept()
        kept.subscribers = [one for one in kept.subscribers if one is not subscriber]


def _reader(subscriber: ChannelSubscriber) -> Any:
    """Return the DDS reader inside a subscriber, or None before `Init` and after `Close`."""
    channel = getattr(subscriber, "_ChannelSubscriber__channel", None)
    return getattr(getattr(channel, "_Channel__reader", None), "_Reader__reader", None)


def _kept() -> _Kept:
    factory = ChannelFactory()
    kept: _Kept | None = getattr(factory, _ATTRIBUTE, None)
    if kept is None:
        kept = _Kept()
        setattr(factory, _ATTRIBUTE, kept)
    return kept
