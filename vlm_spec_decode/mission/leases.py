"""Missions that live only as long as their client sends heartbeats. Independent of ROS and threads.

A client that dies (killed, its computer off, its network gone) sends no more heartbeats, and silence ends
its mission. A lease begins with the request, so that the first heartbeat may come after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LATE_S = 0.15
"""How late a look may come and still count as one. Beyond that this process was not running: what its askers
said meanwhile has yet to be read, so the time is not counted as their silence."""


@dataclass(slots=True)
class MissionLeases:
    """The missions with a lease and the time of each one's last heartbeat, in seconds of one clock."""

    period_s: float
    """How often `expired` is called."""
    _silence_s: dict[str, float] = field(default_factory=dict)
    _heard_s: dict[str, float] = field(default_factory=dict)
    _looked_s: float | None = None

    def begin(self, mission: str, silence_s: float, now_s: float) -> None:
        """Let a mission live as long as no silence is longer than `silence_s`; 0: it needs no heartbeat."""
        if silence_s > 0:
            self._silence_s[mission], self._heard_s[mission] = silence_s, now_s

    def beat(self, mission: str, now_s: float) -> None:
        """Take a heartbeat; one for a mission without a lease is ignored."""
        if mission in self._heard_s:
            self._heard_s[mission] = now_s

    def end(self, mission: str) -> None:
        """Forget a mission that is over."""
        self._silence_s.pop(mission, None)
        self._heard_s.pop(mission, None)

    def expired(self, now_s: float) -> list[str]:
        """Return the missions whose askers have fallen silent, and forget them."""
        late_s = 0.0 if self._looked_s is None else now_s - self._looked_s - self.period_s
        self._looked_s = now_s
        if late_s > LATE_S:
            self._heard_s = {mission: heard_s + late_s for mission, heard_s in self._heard_s.items()}
        found = [m for m, heard_s in self._heard_s.items() if now_s - heard_s > self._silence_s[m]]
        for mission in found:
            self.end(mission)
        return found
