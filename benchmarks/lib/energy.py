"""The power of a whole machine by its own counters: RAPL of its processor, or the INA3221 of a Jetson."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from vlm_spec_decode.edge.draft_budget import joules_between, processor_counters, read_number, supply_of

RAPL, SENSORS = Path("/sys/class/powercap"), Path("/sys/class/hwmon")


class EnergyMeter:
    """Mean power of the machine from its start to `stop`. The folders are those of Linux's sysfs."""

    def __init__(self, rapl: Path = RAPL, sensors: Path = SENSORS, period_s: float = 0.2) -> None:
        self._counters = processor_counters(rapl)
        self._supply = supply_of(sensors)
        self._begin_s, self._begin_uj = time.monotonic(), self._read_uj()
        self._samples_w: list[float] = []
        self._ended = threading.Event()
        self._period_s = period_s
        self._thread = threading.Thread(target=self._sample, daemon=True)
        if self._supply:
            self._thread.start()

    def stop(self) -> float | None:
        """Return the mean power in watts; None where the machine has no counter that may be read."""
        self._ended.set()
        if self._supply:
            self._thread.join()
            return sum(self._samples_w) / len(self._samples_w)
        if not self._counters:
            return None
        spent_s = time.monotonic() - self._begin_s
        used = zip(self._counters, self._begin_uj, self._read_uj(), strict=True)
        return sum(joules_between(*readings) for readings in used) / spent_s

    def _read_uj(self) -> list[int]:
        return [read_number(each / "energy_uj") for each in self._counters]

    def _sample(self) -> None:
        while self._supply:
            self._samples_w.append(self._supply.watts())
            if self._ended.wait(self._period_s):
                return


def watts(power: float | None) -> str:
    """Return a power in words."""
    return "not available" if power is None else f"{power:.1f} W"
