"""A poll ends early when another thread asks for it, however often, and never after the end."""

from __future__ import annotations

import threading
import time

import zmq

from vlm_spec_decode.transport.connection import Waker


def is_readable(waker: Waker, timeout_ms: int = 0) -> bool:
    poller = zmq.Poller()
    poller.register(waker.fileno(), zmq.POLLIN)
    return bool(poller.poll(timeout_ms))


def test_a_poll_ends_early_and_is_woken_once() -> None:
    waker = Waker()
    assert not is_readable(waker)
    threading.Timer(0.05, waker.wake).start()
    began_s = time.monotonic()
    assert is_readable(waker, 10_000)
    assert time.monotonic() - began_s < 5
    waker.wake()
    waker.clear()
    assert not is_readable(waker)
    waker.clear()
    waker.close()


def test_more_wake_ups_than_a_pipe_holds_are_as_good_as_one() -> None:
    waker = Waker()
    for _ in range(100_000):
        waker.wake()
    assert is_readable(waker)
    waker.clear()
    assert not is_readable(waker)
    waker.wake()
    assert is_readable(waker)
    waker.close()


def test_nothing_is_written_into_a_file_that_got_the_number_of_a_closed_pipe() -> None:
    first = Waker()
    first.close()
    first.close()
    second = Waker()
    first.wake()  # the numbers are the same now, unless another thread has taken them
    assert not is_readable(second)
    second.close()
