"""The agreement on who drives a robot, enumerated in virtual time: never two for long, one in the end."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from test.robot.rooms import Rooms
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import RobotHeld
from vlm_spec_decode.robot.lease import CLAIM_PERIOD_S, LEASE_S, WAIT_S, Arbiter, Claim, Lease, new_claim

STEP_S = 0.05


@dataclass
class Node:
    """One executor of the simulation: when it starts, how its clock is off, and when it dies or sleeps."""

    name: str
    start_s: float
    skew_s: float = 0.0
    dies_s: float = math.inf
    sleeps: tuple[float, float] = (math.inf, math.inf)
    arbiter: Arbiter | None = None
    said_s: float = -math.inf
    letters: list[tuple[float, Claim]] = field(default_factory=list)

    def is_awake(self, now_s: float) -> bool:
        return self.start_s <= now_s < self.dies_s and not self.sleeps[0] <= now_s < self.sleeps[1]

    @property
    def holds(self) -> bool:
        return self.arbiter is not None and self.arbiter.own.holds and not self.arbiter.is_over


def simulate(nodes, until_s=8.0, delay_s=0.01, deaf_until_s=0.0, loss=0.0, seed=0):
    """Return at each step who holds and is awake. Nobody hears anybody before `deaf_until_s`."""
    chance, history, now_s = random.Random(seed), [], 0.0

    def say(node):
        node.said_s = now_s
        for other in nodes:
            is_heard = other is not node and now_s >= deaf_until_s and chance.random() >= loss
            if is_heard and other.start_s <= now_s < other.dies_s:
                other.letters.append((now_s + delay_s, node.arbiter.own))

    while now_s < until_s:
        for node in nodes:
            if not node.is_awake(now_s):
                continue
            wall_s = 1000.0 + now_s + node.skew_s
            if node.arbiter is None:
                own = Claim(node.name, node.name, "host", 1, wall_s)
                node.arbiter = Arbiter(own, now_s)
            due = [claim for at_s, claim in node.letters if at_s <= now_s]
            node.letters = [letter for letter in node.letters if letter[0] > now_s]
            answers = [node.arbiter.on_claim(claim, now_s, wall_s) for claim in due]
            node.arbiter.tick(now_s, wall_s)
            if not node.arbiter.is_over and (any(answers) or now_s - node.said_s >= CLAIM_PERIOD_S - 1e-9):
                say(node)
        history.append((now_s, [node.name for node in nodes if node.holds and node.is_awake(now_s)]))
        now_s += STEP_S
    return history


def overlap_s(history):
    return STEP_S * sum(len(names) > 1 for _, names in history)


STARTS = (0.0, 0.05, 0.3, 0.95, 1.0, 1.05, 2.0)


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.3])
def test_of_two_exactly_one_holds_whenever_they_start_and_whatever_their_clocks(delay_s):
    for start_s, skew_s in itertools.product(STARTS, (-3600.0, -0.01, 0.0, 0.01, 3600.0)):
        nodes = [Node("a", 0.0), Node("b", start_s, skew_s)]
        history = simulate(nodes, delay_s=delay_s)
        assert overlap_s(history) == 0.0, (start_s, skew_s)
        assert len(history[-1][1]) == 1
        loser = next(node for node in nodes if not node.holds)
        assert loser.arbiter.winner.id == history[-1][1][0]
        if start_s >= WAIT_S + delay_s:
            assert history[-1][1] == ["a"], "who holds is not driven out by a clock that is behind"


def test_of_five_at_the_same_instant_exactly_one_holds():
    for order in itertools.permutations("abcde"):
        nodes = [Node(name, 0.0) for name in order]
        history = simulate(nodes, until_s=3.0)
        assert history[-1][1] == ["a"]
        assert overlap_s(history) == 0.0


def test_two_that_hear_each_other_too_late_agree_within_one_beat():
    for deaf_s, skew_s in itertools.product((1.5, 3.0, 5.0), (-10.0, 0.0, 10.0)):
        history = simulate([Node("a", 0.0), Node("b", 0.0, skew_s)], deaf_until_s=deaf_s)
        assert len(history[-1][1]) == 1
        assert all(len(names) <= 1 for at_s, names in history if at_s > deaf_s + CLAIM_PERIOD_S + 2 * STEP_S)


def test_a_dead_ones_place_is_free_after_a_second():
    for dies_s in (2.0, 2.1, 2.2):
        history = simulate([Node("a", 0.0, dies_s=dies_s), Node("b", dies_s)])
        taken_s = next(at_s for at_s, names in history if names == ["b"])
        assert taken_s - dies_s <= WAIT_S + 2 * STEP_S


def test_a_holder_that_slept_yields_to_whoever_came_and_stays_if_nobody_did():
    for skew_s in (-10.0, 0.0, 10.0):
        nodes = [Node("a", 0.0, sleeps=(2.0, 5.0)), Node("b", 2.5, skew_s)]
        history = simulate(nodes)
        assert len(history[-1][1]) == 1, skew_s
        assert overlap_s(history) <= CLAIM_PERIOD_S
    assert simulate([Node("a", 0.0, sleeps=(2.0, 5.0))])[-1][1] == ["a"]
    nodes = [Node("a", 0.0, sleeps=(2.0, 2.5)), Node("b", 2.2)]
    assert simulate(nodes)[-1][1] == ["a"], "a short sleep costs nothing"


@given(
    starts=st.lists(st.floats(0.0, 3.0), min_size=2, max_size=4),
    skews=st.lists(st.floats(-100.0, 100.0), min_size=4, max_size=4),
    loss=st.floats(0.0, 0.3),
    delay_s=st.floats(0.0, 0.2),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_with_losses_too_there_is_one_in_the_end(starts, skews, loss, delay_s, seed):
    nodes = [Node(f"n{i}", round(start / STEP_S) * STEP_S, skews[i]) for i, start in enumerate(starts)]
    history = simulate(nodes, until_s=8.0, delay_s=delay_s, loss=loss, seed=seed)
    assert len(history[-1][1]) == 1


def test_a_claim_comes_back_out_of_its_line_and_rubbish_is_none():
    claim = replace(new_claim("/go2/locomotion_node"), holds=True)
    assert Claim.from_json(claim.to_json()) == claim
    assert "go2/locomotion_node" in str(claim)
    assert str(claim.pid) in str(claim)
    for text in ("", "x", "null", "[]", "{}", "1e999", "[" * 100_000, claim.to_json().replace("true", "1"),
                 claim.to_json() + " " * 3000, '{"since_s": "NaN"}',
                 Claim("i", "n", "h", 1, math.nan).to_json()):  # fmt: skip
        assert Claim.from_json(text) is None, text[:50]


# With threads --------------------------------------------------------------------------------------


def lease(rooms, name, lost, wait_s=0.4):
    return Lease((rooms.board(),), name, WallClock(), lost.append, wait_s)


def test_a_second_is_refused_by_name_and_the_place_of_one_that_left_is_free():
    rooms, lost = Rooms(), []
    first, second = lease(rooms, "/a", lost), lease(rooms, "/b", lost)
    assert first.acquire()
    assert first.holds
    with pytest.raises(RobotHeld, match=r"'/a' \(pid \d+ on host .*holds this robot already"):
        second.acquire()
    second.close()
    assert not second.was_held
    first.close()
    third = lease(rooms, "/c", lost)
    assert third.acquire()
    third.close()
    assert not lost


def test_two_that_were_cut_apart_agree_when_they_hear_each_other_again():
    rooms, lost = Rooms(), []
    rooms.is_cut = True
    first, second = lease(rooms, "/a", lost), lease(rooms, "/b", lost)
    assert first.acquire()
    assert second.acquire()
    rooms.is_cut = False
    assert rooms.wait(lambda: len(lost) == 1)
    assert "'/a'" in str(lost[0])
    assert (first.holds, second.holds) == (True, False)
    first.close()
    second.close()


def test_rubbish_on_the_board_is_counted_and_disturbs_nobody():
    rooms, lost = Rooms(), []
    mine, other = lease(rooms, "/a", lost), rooms.board()
    other.open(lambda _: None)
    assert mine.acquire()
    for text in ("", "{", "\x00" * 50, '{"id": 1}'):
        other.write(text)
    assert rooms.wait(lambda: mine.unreadable == 4)
    assert mine.holds
    mine.close()


def test_a_lease_that_is_closed_while_it_asks_gives_up_at_once():
    rooms = Rooms()
    mine = lease(rooms, "/a", [], wait_s=5.0)
    rooms.later(0.2, mine.close)
    assert not mine.acquire()
    assert LEASE_S <= WAIT_S
