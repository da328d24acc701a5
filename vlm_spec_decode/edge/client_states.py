"""The states of the edge's half of the protocol, and its legal steps; docs/protocol.md says what they mean.

::

                  connect                Welcome                 open, or an answer waits
        NEW ──────────────► GREETING ──────────────► READY ──────────────────────────────► ANSWERING
                              ▲  ▲                     ◄──────── close, Refused, too busy ─────┘
          connect, open       │  │ no answer of the cloud for too long, or it has forgotten the robot
        FAILED ───────────────┘  └───────────────────── READY, ANSWERING, BACKING_OFF
           ▲
           └── silence beyond all patience, Refused, another model: from every state but NEW

        BACKING_OFF: a cloud was busy and serves no answer of ours. Entered by Busy from GREETING, READY and
        ANSWERING; left for GREETING at the next cloud when its time has come, or by open. An answer that is
        busy beside one that is served waits in ANSWERING, and is opened again there.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class ClientState(Enum):
    """State of the edge's half of the protocol."""

    NEW = "new"
    """Nothing has been sent; `connect` starts the handshake."""

    GREETING = "greeting"
    """Hello was sent and no Welcome has come; open answers wait."""

    READY = "ready"
    """A cloud has welcomed this edge, and no answer is open."""

    ANSWERING = "answering"
    """The cloud has the Open of an answer."""

    BACKING_OFF = "backing_off"
    """A cloud was busy. At `_retry_s` the next one gets a Hello; open answers wait."""

    FAILED = "failed"
    """The error is the last of the events; `connect` or `open` starts again."""


_S = ClientState
TRANSITIONS: Mapping[ClientState, frozenset[ClientState]] = {
    _S.NEW: frozenset({_S.GREETING}),
    _S.GREETING: frozenset({_S.GREETING, _S.READY, _S.ANSWERING, _S.BACKING_OFF, _S.FAILED}),
    _S.READY: frozenset({_S.GREETING, _S.ANSWERING, _S.BACKING_OFF, _S.FAILED}),
    _S.ANSWERING: frozenset({_S.GREETING, _S.READY, _S.ANSWERING, _S.BACKING_OFF, _S.FAILED}),
    _S.BACKING_OFF: frozenset({_S.GREETING, _S.ANSWERING, _S.BACKING_OFF, _S.FAILED}),
    _S.FAILED: frozenset({_S.GREETING}),
}
"""Every state and the states that may follow it."""

CONNECTED_STATES = frozenset({_S.GREETING, _S.READY, _S.ANSWERING, _S.BACKING_OFF})
"""States in which messages of a cloud are handled."""
