"""A mission lives as long as its asker is heard; a moment in which nobody ran is no silence."""

from vlm_spec_decode.mission.queue import MissionLeases

PERIOD_S = 0.05


def looks(leases, start_s, end_s):
    """Look every period; return what expired, with its time."""
    found = []
    for i in range(round((end_s - start_s) / PERIOD_S) + 1):
        now_s = start_s + i * PERIOD_S
        found += [(round(now_s, 2), mission) for mission in leases.expired(now_s)]
    return found


def test_silence_ends_a_mission_once_and_a_heartbeat_keeps_it():
    leases = MissionLeases(PERIOD_S)
    leases.begin("dead", 0.72, 10.0)
    leases.begin("alive", 0.72, 10.0)
    leases.begin("plain", 0.0, 10.0)
    assert looks(leases, 10.0, 10.5) == []
    leases.beat("alive", 10.5)
    leases.beat("nobody", 10.5)
    assert looks(leases, 10.55, 11.1) == [(10.75, "dead")]
    assert looks(leases, 11.15, 12.0) == [(11.25, "alive")]


def test_a_mission_that_is_over_needs_nobody():
    leases = MissionLeases(PERIOD_S)
    leases.begin("m", 0.3, 0.0)
    leases.end("m")
    leases.end("m")
    assert looks(leases, 0.0, 2.0) == []


def test_a_process_that_did_not_run_blames_nobody_for_its_own_silence():
    leases = MissionLeases(PERIOD_S)
    leases.begin("m", 0.72, 0.0)
    assert looks(leases, 0.0, 0.5) == []
    # Two seconds in which this process stood still; what was said meanwhile is read only now.
    assert leases.expired(2.5) == []
    leases.beat("m", 2.51)
    assert looks(leases, 2.55, 3.15) == []
    assert looks(leases, 3.2, 3.5) == [(3.25, "m")]


def test_a_process_that_did_not_run_still_notices_a_dead_asker():
    leases = MissionLeases(PERIOD_S)
    leases.begin("m", 0.72, 0.0)
    assert leases.expired(0.0) == []
    assert leases.expired(5.0) == []
    assert [mission for _, mission in looks(leases, 5.05, 6.0)] == ["m"]


def test_nobody_need_look_while_there_is_no_lease():
    leases = MissionLeases(PERIOD_S)
    leases.begin("first", 0.72, 0.0)
    assert looks(leases, 0.0, 0.5) == []
    leases.end("first")
    assert not leases.is_any
    leases.begin("later", 0.72, 100.0)
    assert leases.is_any
    # The time without a look, in which there was no lease, is not added to its silence.
    assert looks(leases, 100.05, 101.0) == [(100.75, "later")]
    assert not leases.is_any
