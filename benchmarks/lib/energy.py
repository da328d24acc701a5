"""The power of a whole machine by its own counters: RAPL of its processor, or the INA3221 of a Jetson."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

RAPL, SENSORS = Path("/sys/class/powercap"), Path("/sys/class/hwmon")
JETSON_TOTALS = ("VDD_IN", "POM_5V_IN")
"""Names of the channel with the whole module's supply on the Jetsons."""


class EnergyMeter:
    """Mean power of the machine from its start to `stop`. The folders are those of Linux's sysfs."""

    def __init__(self, rapl: Path = RAPL, sensors: Path = SENSORS, period_s: float = 0.2) -> None:
        self._counters = [
            each for each in sorted(rapl.glob("intel-rapl:*")) if each.name.count(":") == 1 and _reads(each)
        ]
        self._channels = _supply_channels(sensors)
        self._begin_s, self._begin_uj = time.monotonic(), self._read_uj()
        self._samples_w: list[float] = []
        self._ended = threading.Event()
        self._period_s = period_s
        self._thread = threading.Thread(target=self._sample, daemon=True)
        if self._channels:
            self._thread.start()

    def stop(self) -> float | None:
        """Return the mean power in watts; None where the machine has no counter that may be read."""
        self._ended.set()
        if self._channels:
            self._thread.join()
            return sum(self._samples_w) / len(self._samples_w)
        if not self._counters:
            return None
        spent_s = time.monotonic() - self._begin_s
        used = zip(self._counters, self._begin_uj, self._read_uj(), strict=True)
        # A counter begins again at 0 after its range.
        joules = sum(
            1e-6 * ((now - then) % (_number(each / "max_energy_range_uj") + 1)) for each, then, now in used
        )
        return joules / spent_s

    def _read_uj(self) -> list[int]:
        return [_number(each / "energy_uj") for each in self._counters]

    def _sample(self) -> None:
        while True:
            millivolts_milliamperes = [
                (_number(volts), _number(amperes)) for volts, amperes in self._channels
            ]
            self._samples_w.append(sum(1e-6 * mv * ma for mv, ma in millivolts_milliamperes))
            if self._ended.wait(self._period_s):
                return


def _supply_channels(sensors: Path) -> list[tuple[Path, Path]]:
    """Return the files of voltage and current of a Jetson's supply."""
    for folder in sorted(sensors.glob("hwmon*")):
        for label in sorted(folder.glob("in*_label")):
            if label.read_text(encoding="utf-8").strip() in JETSON_TOTALS:
                number = label.name.removeprefix("in").removesuffix("_label")
                return [(folder / f"in{number}_input", folder / f"curr{number}_input")]
    return []


def _reads(counter: Path) -> bool:
    """Whether a counter may be read: since 2020 only root may."""
    with suppress(OSError, ValueError):
        return _number(counter / "energy_uj") >= 0
    return False


def _number(path: Path) -> int:
    return int(path.read_text(encoding="utf-8"))


def watts(power: float | None) -> str:
    """Return a power in words."""
    return "not available" if power is None else f"{power:.1f} W"
