"""When a pass waits for a hint, and when it has stopped believing in one. Times in seconds."""

from __future__ import annotations

import itertools

from vlm_spec_decode.strategies.estimators import HysteresisSwitch
from vlm_spec_decode.strategies.hybrid.cloud_policy import WEIGHT, EndRecord, EndWait, WaitPolicy


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


# The end of an answer ---------------------------------------------------------------------------------------


def near_its_end(every_s: float = 0.07, pass_s: float = 0.6, holds: float = 0.99) -> EndWait:
    """A path of 10 tokens, to which each message has added one; the last has just come, at 1 s."""
    record = EndRecord()
    record.pass_s.learn(pass_s)
    record.holds.value = holds
    ending = EndWait(record=record)
    for number in range(11):
        ending.received(1.0 - (10 - number) * every_s)
    return ending


PATH = tuple(range(10))


def test_a_pass_waits_for_the_last_tokens_of_an_answer_and_for_no_more_than_it_saves() -> None:
    ending = near_its_end()
    until_s = ending.until_s(PATH, 0, 3, 1.0, 1.0)
    assert until_s is not None
    assert 1.07 < until_s < 1.2
    assert ending.until_s(PATH, 0, 3, 1.0, until_s) is None, "the message has not come"
    assert near_its_end().until_s(PATH, 0, 0, 1.0, 1.0) is None, "it is complete, or its end is not known"
    assert near_its_end().until_s((), 0, 3, 1.0, 1.0) is None, "there is nothing in hand"
    assert near_its_end().until_s(PATH, 0, 20, 1.0, 1.0) is None, "the end is far"
    assert near_its_end(pass_s=0.1).until_s(PATH, 0, 3, 1.0, 1.0) is None, "passes are short"
    assert near_its_end(holds=0.8).until_s(PATH, 0, 3, 1.0, 1.0) is None, "the path will not hold"
    assert EndWait().until_s(PATH, 0, 3, 1.0, 1.0) is None, "nothing is known"


def test_it_never_waits_longer_than_a_pass_takes() -> None:
    ending, now_s = near_its_end(), 1.0
    while ending.until_s(PATH, 0, 2, 1.0, now_s) is not None:
        now_s += 0.07
        ending.received(now_s)
        assert now_s < 1.8
    assert now_s > 1.0


def test_whether_paths_hold_is_learned_from_passes_behind_the_first() -> None:
    ending = near_its_end()
    before = ending.record.holds.value
    for is_first, said, changes in ((True, (77,), False), (False, (77,), True)):
        ending.until_s(PATH, 0, 3, 1.0, 1.0)
        ending.committed(said, 0.6, is_first=is_first)
        assert (ending.record.holds.value < before) is changes
