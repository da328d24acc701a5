"""What one cloud process takes on. Every list, queue and store that a robot can fill has its bound here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeskLimits:
    """Bounds of one desk.

    Sessions idle longer than `idle_s` are forgotten. A pass holds at most `batch` answers, of which at most
    `fills` compute a prompt, so that newcomers do not hold up those who are on their way. Beyond `kv_bytes`
    the caches of sessions that nothing has happened to for `evict_after_s` go, and are computed again when
    they are needed. A robot that comes when everything is taken is asked to come again after `retry_s`.
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
