"""The simulator as a process, as far as no process is needed to see it."""

from __future__ import annotations

import pytest

from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.sim.app import lingering
from vlm_spec_decode.sim.settings import SimConfig

pytestmark = pytest.mark.sim


def test_it_stays_for_a_while_after_it_was_asked_to_end() -> None:
    clock, asked = VirtualClock(), [False]
    leaves = lingering(lambda: asked[0], clock, 3.0)
    assert not leaves()
    clock.sleep(10.0)
    asked[0] = True
    assert not leaves()
    clock.sleep(2.9)
    assert not leaves()
    clock.sleep(0.1 + 1e-9)
    assert leaves()
    assert lingering(lambda: True, clock, 0.0)()


def test_it_does_not_stay_for_ever() -> None:
    with pytest.raises(ConfigError, match="linger_s"):
        SimConfig(linger_s=1e9)
