import os
import signal
import threading
import weakref

import pytest

from vlm_spec_decode.core.interrupts import hold_interrupts, keep_interrupts


def test_ctrl_c_waits_for_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), hold_interrupts() as held:  # noqa: PT012
        assert not held
        os.kill(os.getpid(), signal.SIGINT)
        assert held
        done.append(1)
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_of_the_block_does_not_hide_ctrl_c():
    with pytest.raises(KeyboardInterrupt) as found, hold_interrupts():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("of the block")
    assert isinstance(found.value.__context__, ValueError)


def test_what_is_ignored_stays_ignored_and_other_threads_change_nothing():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with hold_interrupts() as held:
            os.kill(os.getpid(), signal.SIGINT)
            assert not held
    finally:
        signal.signal(signal.SIGINT, before)
    handlers = []

    def elsewhere():
        with hold_interrupts():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert handlers == [before]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_a_callback_swallows_comes_at_the_end_of_the_block():
    """As in an import: Python prints what a weak reference's callback raises, and goes on."""

    class Thing:
        pass

    reached = []
    with pytest.raises(KeyboardInterrupt), keep_interrupts():  # noqa: PT012
        thing = Thing()
        gone = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
        del thing
        reached.append(gone())
    assert reached == [None]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_programs_own_handler_is_called_once():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with keep_interrupts():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [1]
