"""Which cloud is nearest, and when a robot moves."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack

import pytest

from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.edge import nearest
from vlm_spec_decode.edge.nearest import (
    AVOID_S,
    FORGET_S,
    HOLD_S,
    MAX_DOUBLINGS,
    PINGS_S,
    NearestCloud,
    nearest_first,
)
from vlm_spec_decode.transport import address as addresses
from vlm_spec_decode.transport.router import RouterLink


def probed(*rtts_ms: float | None, times: int = 3) -> NearestCloud:
    made = NearestCloud(len(rtts_ms))
    for _ in range(times):
        made.record_probes([None if rtt is None else rtt / 1000 for rtt in rtts_ms])
    return made


@pytest.mark.parametrize(
    ("rtts_ms", "idle", "answering"),
    [
        ((20, 20), None, None),
        ((20, 12), None, None),
        ((25, 12), 1, None),
        ((100, 12), 1, 1),
        ((300, 120), 1, 1),
        ((250, 120), 1, None),
        ((None, 40), 1, 1),
        ((40, None), None, None),
        ((None, None), None, None),
        ((90, 30, 12), 2, 2),
    ],
)
def test_another_cloud_has_to_be_clearly_nearer(
    rtts_ms: tuple[float | None, ...], idle: int | None, answering: int | None
) -> None:
    made = probed(*rtts_ms)
    assert made.better_than(0, 100.0, is_answering=False) == idle
    assert made.better_than(0, 100.0, is_answering=True) == answering


def test_nothing_is_known_before_the_first_probe_and_one_late_echo_moves_nobody() -> None:
    assert NearestCloud(3).ranking(0.0) == (0, 1, 2)
    assert NearestCloud(3).better_than(1, 0.0, is_answering=False) is None
    made = probed(20, 20)
    made.record_probes([0.9, 0.02])
    assert made.better_than(0, 0.0, is_answering=False) is None
    made.record_probes([0.9, 0.02])
    assert made.better_than(0, 0.0, is_answering=False) == 1


def test_pings_tell_of_a_cloud_that_answers_late_and_are_kept_for_a_while() -> None:
    made = probed(10, 10)
    for number in range(5):
        made.record_ping(0, 0.4, 100.0 + number)
    assert made.better_than(0, 104.0, is_answering=True) == 1
    made.on_moved(104.0)
    assert made.better_than(1, 110.0, is_answering=False) is None, "it knows that the other one answers late"
    made.record_probes([0.01, 0.2])
    made.record_probes([0.01, 0.2])
    assert made.better_than(1, 110.0, is_answering=False) is None
    assert made.better_than(1, 104.1 + PINGS_S, is_answering=False) == 0


def test_a_cloud_that_answers_pings_is_there_though_no_probe_comes_through() -> None:
    made = probed(None, 10)
    for number in range(5):
        made.record_ping(0, 0.011, 100.0 + number / 10)
    assert made.better_than(0, 100.5, is_answering=False) is None
    assert made.better_than(0, 103.0, is_answering=False) == 1


def test_a_robot_stays_after_a_move_and_avoids_a_cloud_that_failed() -> None:
    made = probed(90, 12, 40)
    made.on_moved(50.0)
    assert made.better_than(0, 50.0 + HOLD_S - 0.1, is_answering=False) is None
    assert made.better_than(0, 50.0 + HOLD_S, is_answering=False) == 1
    made.avoid(1, 60.0)
    assert made.ranking(60.0) == (2, 0, 1)
    assert made.better_than(0, 60.0, is_answering=False) == 2
    assert made.better_than(0, 60.0 + AVOID_S, is_answering=False) == 1
    made.avoid(1, 100.0)
    assert made.better_than(0, 99.0 + 2 * AVOID_S, is_answering=False) == 2, "longer the second time"
    assert made.better_than(0, 100.0 + 2 * AVOID_S, is_answering=False) == 1
    for number in range(20):
        made.avoid(1, 200.0 + number)
    assert made.better_than(0, 220.0 + AVOID_S * 2**MAX_DOUBLINGS, is_answering=False) == 1, "bounded"
    later_s = 220.0 + AVOID_S * 2**MAX_DOUBLINGS + FORGET_S
    made.avoid(1, later_s)
    assert made.better_than(0, later_s + AVOID_S, is_answering=False) == 1


def test_round_trips_are_those_of_the_server_itself() -> None:
    """One that accepts and says nothing, one that says something else and hangs up, and one that refuses."""
    with ExitStack() as stack:
        link = RouterLink("tcp://127.0.0.1:*", None)
        stack.callback(link.close)
        mute = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        rude = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def hang_up() -> None:
            caller, _ = rude.accept()
            caller.sendall(b"no")
            caller.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with socket.create_server(("127.0.0.1", 0)) as gone:
            refusing = gone.getsockname()[1]
        ports = [mute.getsockname()[1], rude.getsockname()[1], refusing]
        others = [f"tcp://127.0.0.1:{port}" for port in ports]
        began_s = time.monotonic()
        found = addresses.round_trips([*others, link.address, "tcp://no.such.host.invalid:1"], 5.0)
        assert time.monotonic() - began_s < 30
        assert found[:3] == [None, None, None]
        assert found[4] is None
        assert found[3] is not None
        assert 0 < found[3] < 5
        thread.join()
        assert addresses.round_trips([], 1.0) == []


def test_clouds_are_put_in_order_before_the_first_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    rtts = {"tcp://a:1": 0.2, "tcp://b:1": None, "tcp://c:1": 0.01, "tcp://d:1": None}
    monkeypatch.setattr(nearest.addresses, "round_trips", lambda clouds, _: [rtts[each] for each in clouds])
    assert (
        nearest_first("tcp://a:1, tcp://b:1,tcp://c:1,tcp://d:1") == "tcp://c:1,tcp://a:1,tcp://b:1,tcp://d:1"
    )
    with pytest.raises(ConfigError):
        nearest_first("a:1")
