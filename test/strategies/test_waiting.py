"""When a pass waits for a hint, and when it has stopped believing in one. Times in seconds."""

from __future__ import annotations

import itertools

from vlm_spec_decode.strategies.estimators import HysteresisSwitch
from vlm_spec_decode.strategies.hybrid.cloud_policy import WEIGHT, WaitPolicy


def waits(objective: str, pass_s: float, hint_s: float, adds: float, rounds: int = 12) -> tuple[int, float]:
    """Return (hints waited for, seconds waited) over rounds whose hints come every `hint_s`."""
    waiting, now_s, hints, waited_s = WaitPolicy(weight=WEIGHT[objective]), 0.0, 0, 0.0
    for number in range(1, rounds + 1):
        now_s += pass_s
        waiting.committed(number, now_s)
        gain = 0.0
        while waiting.until_s(gain, pass_s, now_s) is not None:
            now_s, waited_s, hints = now_s + hint_s, waited_s + hint_s, hints + 1
            waiting.received(number, now_s)
            gain += adds
        if not hints:  # the hint comes while the pass runs
            waiting.received(number, now_s + hint_s)
    return hints, waited_s


def test_a_hint_that_is_near_and_brings_much_is_waited_for() -> None:
    assert waits("latency", pass_s=0.6, hint_s=0.08, adds=0.9)[0] >= 10
    assert waits("latency", pass_s=0.06, hint_s=0.2, adds=0.9)[0] == 0


def test_the_cheaper_waiting_counts_the_longer_it_lasts() -> None:
    hints = [waits(name, pass_s=0.1, hint_s=0.05, adds=0.5)[0] for name in ("latency", "balanced", "cost")]
    assert hints[0] <= hints[1] <= hints[2]
    assert hints[0] < hints[2]


def test_hints_that_do_not_come_are_no_longer_waited_for() -> None:
    waiting, now_s, waited_s = WaitPolicy(), 0.0, []
    waiting.committed(1, now_s)
    waiting.received(1, now_s + 0.01)
    for number in range(2, 40):
        now_s += 0.06
        waiting.committed(number, now_s)
        until_s = waiting.until_s(0.0, 0.06, now_s)
        waited_s.append(0.0 if until_s is None else until_s - now_s)
        now_s += waited_s[-1]
        assert waiting.until_s(0.0, 0.06, now_s) is None, "the deadline has passed"
    assert waited_s[0] > 0
    assert sum(waited_s) < 0.1
    assert not any(waited_s[8:])


def test_a_switch_needs_more_to_come_on_than_to_stay_on_and_probes_ever_more_rarely() -> None:
    switch, tried = HysteresisSwitch(), []
    for number in range(100):
        switch.learn(helped=False, is_doubtful=True)
        if switch.is_probe:
            tried.append(number)
    gaps = [b - a for a, b in itertools.pairwise(tried)]
    assert 2 <= len(tried) <= 5
    assert gaps == sorted(gaps)
    switch.learn(helped=False, is_doubtful=False)
    assert switch.is_on, "what is not doubtful needs no proof"
    for _ in range(6):
        switch.learn(helped=True, is_doubtful=False)
    switch.learn(helped=True, is_doubtful=True)
    assert switch.is_on
    assert not switch.is_probe
    for share, stays in ((0.75, True), (0.1, False)):
        history = [(n * share) % 1 < share for n in range(60)]
        for helped in history:
            if switch.is_on:
                switch.learn(helped, is_doubtful=True)
        assert switch.is_on is stays
