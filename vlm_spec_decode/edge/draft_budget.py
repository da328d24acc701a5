"""What drafting may take of the robot's computer (`draft_budget`): a share of a core, or watts.

A bucket of core seconds, or of joules. It fills at the allowed rate r, up to what `SAVED_S` bring, and each
draft step, whatever it is for, draws its cost c when it has ended:

    b(t) = min(r · SAVED_S, b(t0) + r · (t - t0)),        b := b - c,        b = 0 at the start.

A step may begin while b > 0. What it will cost is not known before, so b may fall below 0; that is made good
before the next one begins. So drafting takes, from the start until t, at most r · t and one step, and within
any T seconds at most r · (T + SAVED_S) and one step. An answer's first draft step reads the prompt, which is
for nothing where no others follow: it begins once b holds what an answer usually takes, or is full.

Nobody waits for the bucket: `DraftBudget.allows` is asked, and what may not be drafted is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.ports import Clock

SAVED_S = 30.0
"""The bucket holds at most what so many seconds bring: what was not used earlier than that is lost."""

KEPT = 0.9
"""Of what an answer usually takes, kept with each answer that took less."""

TEXT = re.compile(r"(\d+\.?\d*|\.\d+) ?(core|w)?", re.IGNORECASE)


@dataclass(slots=True)
class DraftBudget:
    """The bucket. `rate` is in cores and `used` a running total of core seconds; or watts, and joules.

    `used` returns NaN where its counters cannot be read. One step at a time draws, from any thread; `allows`
    may be asked at any time.
    """

    rate: float
    used: Callable[[], float]
    clock: Clock
    spent: float = 0.0
    usual: float = 0.0
    _level: tuple[float, float] = field(init=False)
    """What it held, and when. One tuple, for threads ask while another one draws."""

    def __post_init__(self) -> None:
        self._level = (0.0, self.clock.now())

    def allows(self, *, has_begun: bool) -> bool:
        """Tell whether a step may begin, of an answer that has had one before or of a new one."""
        held, full = self._held(self.clock.now()), self.rate * SAVED_S
        return held > 0 and (has_begun or held >= min(full, self.usual))

    @contextmanager
    def step(self) -> Iterator[None]:
        """Draw what is used meanwhile, also if it fails."""
        before = self.used()
        try:
            yield
        finally:
            cost, now_s = self.used() - before, self.clock.now()
            if math.isnan(cost):
                cost = self.rate * SAVED_S  # at most as long a pause, and then another try
            self.spent += cost
            self._level = (self._held(now_s) - cost, now_s)

    def ended(self, spent: float) -> None:
        """Learn what an answer's drafts took in all."""
        self.usual = max(spent, KEPT * self.usual)

    def _held(self, now_s: float) -> float:
        held, at_s = self._level
        return min(self.rate * SAVED_S, held + self.rate * (now_s - at_s))


def budget_of(text: str, clock: Clock, threads: int = 1, system: Path = Path("/sys")) -> DraftBudget | None:
    """Return the budget that a setting names: "0.5" or "0.5core", "3W"; None for "" and 0: no limit.

    A step costs the seconds of `clock` that it takes, times the `threads` that compute; with watts, all that
    the counters below `system` count meanwhile, the rest of the computer included. Raises ConfigError for
    another text, and for watts where nothing counts them.
    """
    found = TEXT.fullmatch(text.strip())
    if text.strip() and not found:
        raise ConfigError(
            f"draft_budget {text!r}: a share of a core is wanted, such as 0.5core, or watts, such as 3W"
        )
    rate = float(found[1]) if found else 0.0
    if found is None or not rate:
        return None
    if (found[2] or "core").lower() == "core":
        return DraftBudget(rate, lambda: threads * clock.now(), clock)
    try:
        return DraftBudget(rate, BoardEnergy(system, clock), clock)
    except ConfigError as missing:
        raise ConfigError(
            f"draft_budget {text!r}: {missing}; give a share of a core, such as 0.5core"
        ) from missing


# The counters ------------------------------------------------------------------------------------

JETSON_TOTALS = ("VDD_IN", "POM_5V_IN")
"""Names of the channel with the whole module's supply on the Jetsons."""


@dataclass(frozen=True, slots=True)
class PowerInput:
    """A sensor of power: the product of what its files hold, in units of `unit_w`."""

    files: tuple[Path, ...]
    unit_w: float

    def watts(self) -> float:
        """Return the present power."""
        return self.unit_w * math.prod(map(read_number, self.files))


class BoardEnergy:
    """Joules by the counters of a computer: RAPL's of its processors, else a Jetson's INA3221.

    A call returns the joules since this was made, NaN while a counter cannot be read. An INA3221 tells watts:
    those at a call stand for the time since the call before. Raises ConfigError where there is neither.
    """

    def __init__(self, system: Path, clock: Clock) -> None:
        rapl, sensors = system / "class/powercap", (system / "class/hwmon", system / "bus/iio/devices")
        self._counters = processor_counters(rapl)
        self._supply = next(filter(None, map(supply_of, sensors)), None)
        if not (self._counters or self._supply):
            raise ConfigError(
                f"nothing counts watts here: {rapl}/intel-rapl:N/energy_uj is not there or may not be read "
                f"(mostly by root only), and no {' or '.join(JETSON_TOTALS)} in {sensors[0]} or {sensors[1]}"
            )
        self._clock = clock
        self._joules, self._at_s, self._counts = 0.0, self._clock.now(), self._read()

    def __call__(self) -> float:
        """Return the joules so far."""
        now_s = self._clock.now()
        try:
            counts = self._read()
            if self._counters or self._supply is None:
                readings = zip(self._counters, self._counts, counts, strict=True)
                self._joules += sum(joules_between(*each) for each in readings)
            else:
                self._joules += self._supply.watts() * (now_s - self._at_s)
        except (OSError, ValueError):
            return math.nan
        self._at_s, self._counts = now_s, counts
        return self._joules

    def _read(self) -> list[int]:
        return [read_number(each / "energy_uj") for each in self._counters]


def processor_counters(powercap: Path) -> list[Path]:
    """Return the folders of RAPL's counters of whole processors, those that may be read."""
    packages = [each for each in sorted(powercap.glob("intel-rapl:*")) if each.name.count(":") == 1]
    return [each for each in packages if _reads(each / "energy_uj")]


def joules_between(counter: Path, before_uj: int, now_uj: int) -> float:
    """Return the joules between two readings of a counter, which begins again at 0 after its range."""
    return 1e-6 * ((now_uj - before_uj) % (read_number(counter / "max_energy_range_uj") + 1))


def supply_of(sensors: Path) -> PowerInput | None:
    """Return a Jetson's supply among the devices of hwmon, or those of iio on older ones; None without."""
    for label in sorted((*sensors.glob("hwmon*/in*_label"), *sensors.glob("iio:device*/rail_name_*"))):
        if label.read_text(encoding="utf-8").strip() not in JETSON_TOTALS:
            continue
        folder, number = label.parent, "".join(filter(str.isdigit, label.name))
        if label.name.startswith("in"):  # millivolts and milliamperes
            return PowerInput((folder / f"in{number}_input", folder / f"curr{number}_input"), 1e-6)
        return PowerInput((folder / f"in_power{number}_input",), 1e-3)
    return None


def read_number(path: Path) -> int:
    """Return the whole number in a file of Linux's sysfs."""
    return int(path.read_text(encoding="utf-8"))


def _reads(path: Path) -> bool:
    with suppress(OSError, ValueError):
        return read_number(path) >= 0
    return False
