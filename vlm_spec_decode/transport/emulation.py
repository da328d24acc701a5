"""An emulated link direction: the arrival time of a message that is sent now.

A reliable, ordered transport over a link with a rate, a delay, jitter and loss: messages serialise one
after the other, loss turns into a retransmission's delay, and nothing overtakes. Used in front of real
sockets and by the virtual-time verifier alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlm_spec_decode.core.profiles import LinkProfile

OVERHEAD_BYTES = 90
"""Per message: ZMTP and CURVE framing (some 40 bytes), TCP/IP headers (some 50)."""


@dataclass(slots=True, kw_only=True)
class EmulatedDirection:
    """One direction. `arrival` must be called in the order of sending.

    A message sent during a gap waits for its end; the first gap begins at `phase_s`.
    """

    rate_bps: float
    delay_s: float
    jitter_s: float
    loss: float
    retransmit_s: float
    rng: np.random.Generator
    gap_s: float = 0.0
    gap_every_s: float = 1.0
    phase_s: float = 0.0
    _free_s: float = 0.0
    _last_s: float = 0.0

    def arrival(self, num_bytes: int, now_s: float) -> float:
        """Return the time at which a message of `num_bytes` sent at `now_s` arrives."""
        self._free_s = (
            self._after_gap(max(now_s, self._free_s)) + 8 * (num_bytes + OVERHEAD_BYTES) / self.rate_bps
        )
        extra_s = abs(self.rng.normal(0.0, self.jitter_s)) if self.jitter_s else 0.0
        while self.loss and self.rng.random() < self.loss:
            extra_s += self.retransmit_s
        self._last_s = max(self._last_s, self._free_s + self.delay_s + extra_s)
        return self._last_s

    def _after_gap(self, start_s: float) -> float:
        into_s = (start_s - self.phase_s) % self.gap_every_s
        is_gap = start_s >= self.phase_s and into_s < self.gap_s
        return start_s + self.gap_s - into_s if is_gap else start_s


def emulated_directions(profile: LinkProfile, seed: int) -> tuple[EmulatedDirection, EmulatedDirection]:
    """Return the uplink and the downlink of a profile; both have their gaps at the same times."""
    delay_s, jitter_s = profile.rtt_ms / 2000, profile.jitter_ms / 1000
    retransmit_s = max(0.2, profile.rtt_ms / 1000)
    up, down, phase = (np.random.default_rng([seed, stream]) for stream in (0, 1, 2))
    phase_s = float(phase.uniform(0, profile.gap_every_s))

    def direction(mbps: float, rng: np.random.Generator) -> EmulatedDirection:
        return EmulatedDirection(
            rate_bps=mbps * 1e6,
            delay_s=delay_s,
            jitter_s=jitter_s,
            loss=profile.loss,
            retransmit_s=retransmit_s,
            rng=rng,
            gap_s=profile.gap_s,
            gap_every_s=profile.gap_every_s,
            phase_s=phase_s,
        )

    return direction(profile.up_mbps, up), direction(profile.down_mbps, down)
