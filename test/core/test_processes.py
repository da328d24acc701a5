"""Processes: threads by the wall clock, and in virtual time threads that take turns."""

from __future__ import annotations

import math
import threading

import pytest

from vlm_spec_decode.core.clock import VirtualClock
from vlm_spec_decode.core.processes import ProcessClock, Threads, VirtualProcesses


def world() -> tuple[ProcessClock, VirtualProcesses]:
    clock = ProcessClock()
    return clock, VirtualProcesses(clock)


def test_sleeps_of_processes_overlap_and_the_driver_sees_each_at_its_time() -> None:
    clock, processes = world()
    seen: list[tuple[str, float]] = []

    def walk(name: str, step_s: float) -> None:
        for _ in range(3):
            clock.sleep(step_s)
            seen.append((name, clock.now()))

    processes.spawn(lambda: walk("a", 1.0))
    processes.spawn(lambda: walk("b", 0.75))
    assert clock.now() == 0.0, "no time passes before somebody waits"
    assert processes.wait(lambda: len(seen) == 2)
    assert clock.now() == 1.0
    assert not processes.wait(lambda: False, 100.0)
    assert clock.now() == 101.0
    # At one time who began to wait first goes on first.
    assert seen == [("b", 0.75), ("a", 1.0), ("b", 1.5), ("a", 2.0), ("b", 2.25), ("a", 3.0)]


def test_events_happen_in_the_order_of_their_times_and_those_of_an_owner_can_be_dropped() -> None:
    clock, processes = world()
    seen: list[tuple[str, float]] = []
    owner = object()
    for name, time_s, of in (("late", 2.0, None), ("early", 1.0, None), ("dropped", 1.5, owner)):
        processes.schedule(time_s, lambda name=name: seen.append((name, processes.event_s)), of)  # type: ignore[misc]
    processes.drop(owner)
    assert processes.wait(lambda: len(seen) == 2)
    assert seen == [("early", 1.0), ("late", 2.0)]
    assert clock.now() == 2.0


def test_a_process_waits_for_what_another_does_and_gives_up_in_time() -> None:
    clock, processes = world()
    box: list[str] = []
    found: list[tuple[bool, float]] = []

    def put() -> None:
        clock.sleep(2.0)
        processes.change(lambda: box.append("letter"))

    def take(timeout_s: float) -> None:
        found.append((processes.wait(lambda: bool(box), timeout_s), clock.now()))

    processes.spawn(lambda: take(1.0))
    processes.spawn(lambda: take(math.inf))
    processes.spawn(put)
    processes.wait(lambda: len(found) == 2)
    assert found == [(False, 1.0), (True, 2.0)]


def test_the_driver_is_told_when_nothing_can_happen_any_more() -> None:
    clock, processes = world()
    processes.spawn(lambda: None)
    processes.spawn(lambda: processes.wait(lambda: False) and None)  # type: ignore[func-returns-value]
    assert not processes.wait(lambda: False)
    assert clock.now() == 0.0


def test_only_one_runs_at_a_time() -> None:
    clock, processes = world()
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(50):
            inside.append(1)
            most.append(len(inside))
            inside.pop()
            clock.sleep(0.01)

    for _ in range(4):
        processes.spawn(work)
    processes.wait(lambda: len(most) == 200)
    assert max(most) == 1
    assert clock.now() == pytest.approx(0.49)


def test_processes_need_a_clock_whose_sleep_they_can_share() -> None:
    with pytest.raises(TypeError, match="ProcessClock"):
        VirtualProcesses(VirtualClock()).spawn(lambda: None)


def test_a_clock_without_processes_is_a_virtual_clock() -> None:
    clock = ProcessClock()
    clock.sleep(1.5)
    clock.sleep(-1.0)
    assert clock.now() == 1.5


def test_threads_wait_for_changes() -> None:
    processes, box = Threads(), list[str]()
    started = threading.Event()

    def put() -> None:
        started.wait(10)
        processes.change(lambda: box.append("letter"))

    processes.spawn(put)
    assert not processes.wait(lambda: bool(box), 0.01)
    started.set()
    assert processes.wait(lambda: bool(box), 10.0)
    assert processes.wait(lambda: True)
