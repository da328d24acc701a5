"""A start on the draft: what the runner sends, and what makes it send nothing."""

from dataclasses import dataclass, field, replace

import pytest

from test.mission.scripted import EchoExecutor, ScriptedEngine
from test.mission.test_runner import QUICK, World
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.actions.types import Done, Forward, Hello, StandUp, Strafe, Turn, Wait, format_action
from vlm_spec_decode.core.errors import CloudUnreachable
from vlm_spec_decode.edge.engine import AnswerUpdate, DraftedAction
from vlm_spec_decode.mission.draft_start import (
    LEFT_ROOM_M,
    OFF_BELOW,
    ON_ABOVE,
    DraftTrust,
    Room,
    is_right,
    startable,
)
from vlm_spec_decode.mission.state import Answer, MissionJob, MissionStatus

DRAFT = replace(QUICK, start="draft", max_steps=8)


@dataclass(frozen=True)
class Drafted:
    """A piece of a script that is not committed: what the draft says so far, and how sure it is."""

    text: str
    chance: float = 0.97


@dataclass
class DraftingEngine(ScriptedEngine):
    """A scripted engine that also shows drafts, if it is asked to."""

    previews: list = field(default_factory=list)

    def answer(self, observation, *, preview=False):
        self.previews.append(preview)
        pieces = self.script[min(len(self.seen) + 1, len(self.script)) - 1]
        shown = [piece for piece in pieces if isinstance(piece, Drafted)]
        kept = self.script
        self.script = [[p for p in each if not isinstance(p, Drafted)] for each in kept]
        updates = super().answer(observation)
        try:
            if preview:
                for piece in shown:
                    action = parse_answer(piece.text)[0]
                    drafted = DraftedAction(action, piece.text, piece.chance)
                    yield AnswerUpdate(answer=1, tokens=(), text="", actions=(), drafted=drafted)
            yield from updates
        finally:
            self.script = kept


@dataclass
class StartingExecutor(EchoExecutor):
    """Echoes plans; a start on a draft is begun, or refused with `refusal`; the first commit settles it."""

    refusal: str = ""
    started: dict = field(default_factory=dict)

    def take(self, plan: Plan) -> PlanStatus:
        if plan.draft_start:
            self.plans.append((0.0, plan))
            outcome = "refused" if self.refusal else "begun" if plan.actions else "withdrawn"
            self.started[plan.answer] = plan.actions or self.started.get(plan.answer, ())
            return PlanStatus(
                plan.mission, plan.answer, state="idle", start=outcome, start_detail=self.refusal or "on it"
            )
        status = super().take(plan)
        begun = self.started.get(plan.answer)
        if begun and self.refusal:
            status = replace(status, start="refused", start_detail=self.refusal)
        elif begun and status.answer == plan.answer:
            right = bool(plan.actions) and is_right(begun[0], plan.actions[0])
            status = replace(status, start="confirmed" if right else "corrected")
        return status


def world_of(*script, config=DRAFT, refusal="", executor=None):
    return World(
        DraftingEngine([list(each) for each in script]), executor or StartingExecutor(refusal=refusal), config
    )


def starts(world):
    return [plan for plan in world.of(Plan) if plan.draft_start]


def reasons(world):
    said = [s.reason for s in world.of(MissionStatus) if s.state == "answering" and s.reason]
    return [reason.removeprefix("start_") for reason in said]


def details(world, reason):
    return [s.detail for s in world.of(MissionStatus) if s.reason == f"start_{reason}"]


END = ("there . ", "done()")


def test_the_first_motion_begins_on_the_draft_and_the_committed_plan_follows():
    world = world_of((Drafted("box left . turn(20)"), "box left . ", "turn(20) ", "forward(1)"), END)
    assert world.run().status == "done"
    plans = [p for p in world.of(Plan) if p.answer == 1]
    told = [(p.sequence, p.actions, p.verified, p.draft_start, p.final) for p in plans]
    assert told == [
        (0, (), True, False, False),
        (1, (Turn(20.0),), False, True, False),
        (2, (Turn(20.0),), True, False, False),
        (3, (Turn(20.0), Forward(1.0)), True, False, True),
    ]
    assert {p.stamp_s for p in plans} == {plans[0].stamp_s}
    assert reasons(world) == ["begun", "confirmed"]
    first, second = world.of(Answer)
    assert (first.start.action, first.start.outcome, second.start) == ("turn(20)", "confirmed", None)
    assert '"start": {"action": "turn(20)", "outcome": "confirmed"}' in first.to_json()
    assert "start" not in second.to_json()


SCRIPTS = [
    [(Drafted("turn(20)"), "turn(20) ", "forward(1)"), END],
    [(Drafted("forward(1)"), "turn(20)"), END],
    [(Drafted("turn(20)"), CloudUnreachable("gone")), END],
    [(Drafted("turn(20)"), Drafted("turn(-20)"), "done()")],
    [(Drafted("turn(20)"), "done()")],
]


@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
@pytest.mark.parametrize("config", [QUICK, replace(QUICK, start="committed", fallback="hold")])
def test_by_default_not_one_motion_comes_from_tokens_that_are_not_committed(script, config):
    """The law of the mode `committed`, for all that the runner sends and all that it asks for."""
    assert QUICK.start == "committed"
    world = world_of(*script, config=config)
    world.run()
    assert not any(world.engine.previews)
    assert all(plan.verified and not plan.draft_start for plan in world.of(Plan))
    # Every plan is a beginning of what has been committed for its answer.
    committed = [parse_answer("".join(p for p in each if isinstance(p, str))) for each in script]
    for plan in world.of(Plan):
        assert not plan.actions or any(plan.actions == each[: len(plan.actions)] for each in committed)
    assert not reasons(world)


@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
def test_with_draft_only_marked_plans_go_beyond_what_is_committed(script):
    world = world_of(*script)
    world.run()
    committed = [parse_answer("".join(p for p in each if isinstance(p, str))) for each in script]
    for plan in world.of(Plan):
        if plan.draft_start:
            assert not plan.verified
            assert not plan.final
            assert len(plan.actions) <= 1
        else:
            assert not plan.actions or any(plan.actions == each[: len(plan.actions)] for each in committed)


@pytest.mark.parametrize(
    ("drafted", "part"),
    [
        (Forward(1.5), Forward(0.3)),
        (Forward(0.2), Forward(0.2)),
        (Turn(-20.0), Turn(-20.0)),
        (Turn(-170.0), Turn(-90.0)),
        (Forward(-1.0), None),
        (Forward(0.05), None),
        (Turn(2.0), None),
        (Strafe(0.5), None),
        (Done(), None),
        (Hello(), None),
        (StandUp(), None),
        (Wait(1.0), None),
    ],
)
def test_only_a_small_walk_ahead_or_a_turn_may_begin(drafted, part):
    assert startable(drafted) == part
    world = world_of((Drafted(format_action(drafted)), "wait(1)"), END)
    world.run()
    assert [plan.actions for plan in starts(world)] == ([(part,)] if part else [])


@pytest.mark.parametrize(
    ("started", "said", "right"),
    [
        (Turn(20.0), Turn(20.0), True),
        (Turn(20.0), Turn(60.0), True),
        (Turn(20.0), Turn(12.0), True),
        (Turn(20.0), Turn(5.0), False),
        (Turn(20.0), Turn(-20.0), False),
        (Forward(0.3), Forward(1.5), True),
        (Forward(0.3), Forward(0.25), True),
        (Forward(0.3), Forward(0.1), False),
        (Forward(0.3), Forward(-0.3), False),
        (Forward(0.3), Strafe(0.3), False),
        (Turn(20.0), Forward(1.0), False),
        (Turn(20.0), None, False),
    ],
)
def test_a_start_is_right_if_the_cloud_says_the_same_motion_or_more_of_it(started, said, right):
    assert is_right(started, said) is right


def test_an_unsure_draft_begins_nothing_until_it_is_surer():
    world = world_of((Drafted("turn(20)", 0.5), Drafted("turn(20)", 0.95), "turn(20)"), END)
    world.run()
    assert len(starts(world)) == 1
    unsure = world_of((Drafted("turn(20)", 0.5), "turn(20)"), END)
    unsure.run()
    assert not starts(unsure)


def test_a_draft_that_names_another_motion_takes_its_start_back_once():
    drafts = (Drafted("turn(20)"), Drafted("turn(15)"), Drafted("turn(-20)"), Drafted("turn(20)"))
    world = world_of((*drafts, "turn(20)"), END)
    world.run()
    assert [plan.actions for plan in starts(world)] == [(Turn(20.0),), ()]
    sequences = [plan.sequence for plan in world.of(Plan) if plan.answer == 1]
    assert sequences == sorted(set(sequences))
    # Whether it was right is what the cloud says.
    assert reasons(world) == ["begun", "withdrawn", "confirmed"]


def test_an_unsure_draft_takes_nothing_back():
    world = world_of((Drafted("turn(20)"), Drafted("turn(-20)", 0.4), "turn(20)"), END)
    world.run()
    assert [plan.actions for plan in starts(world)] == [(Turn(20.0),)]


WALK = "forward(1)"


@pytest.mark.parametrize(
    ("text", "instruction"),
    [
        ("a person ahead . forward(1)", "walk on"),
        ("i see two People . forward(1)", "walk on"),
        (WALK, "follow the man with the hat"),
        (WALK, "come to me"),
    ],
)
def test_no_walk_begins_on_a_draft_where_a_person_is_spoken_of(text, instruction):
    world = world_of((Drafted(text), text), END)
    world.run(MissionJob("m1", instruction))
    assert not starts(world)
    assert details(world, "refused")[0].startswith("start_person")


def test_a_person_in_the_last_committed_answer_counts_for_the_next():
    world = world_of(
        ("a child left . ", "turn(20)"),
        (Drafted("a box . forward(1)"), "a box . ", WALK),
        (Drafted(WALK), WALK),
        END,
    )
    world.run()
    assert [plan.answer for plan in starts(world)] == [3]
    assert details(world, "refused")[0].startswith("start_person")


def test_a_turn_on_the_spot_leads_towards_nobody():
    world = world_of((Drafted("a person left . turn(20)"), "a person left . ", "turn(20)"), END)
    world.run(MissionJob("m1", "walk to the person"))
    assert len(starts(world)) == 1


def test_words_that_only_contain_such_a_word_are_none():
    world = world_of((Drafted("a mannequin and a medal . forward(1)"), "forward(1)"), END)
    world.run(MissionJob("m1", "theme park"))
    assert len(starts(world)) == 1


def test_after_a_wrong_draft_nothing_begins_in_this_room_also_in_the_next_mission():
    wrong = (Drafted("turn(20)"), "turn(-20)")
    right = (Drafted("turn(20)"), "turn(20)")
    world = world_of(wrong, right, END, right, END)
    world.run()
    assert [plan.answer for plan in starts(world)] == [1]
    assert reasons(world) == ["begun", "corrected", "refused"]
    assert details(world, "refused") == ["start_room: the draft was wrong here"]
    world.run(MissionJob("m2", "walk on"))
    assert [plan.mission for plan in starts(world)] == ["m1"]


def test_a_draft_that_was_barred_for_a_person_is_judged_all_the_same():
    world = world_of(
        (Drafted("a man . forward(1)"), "box . ", "turn(-20)"), (Drafted("turn(20)"), "turn(20)"), END
    )
    world.run()
    assert not starts(world)
    assert details(world, "refused")[-1] == "start_room: the draft was wrong here"


def test_another_room_is_another_chance():
    room = Room()
    room.on_wrong()
    room.on_executed(["forward(3)", "turn(180)", "forward(2.5)", "hello()", "stop()"])
    assert room.was_wrong, "there and back is here"
    room.on_executed(["turn(180)", "forward(3)", f"forward({LEFT_ROOM_M - 3.4:.1f})"])
    assert not room.was_wrong


def test_a_poor_record_switches_starts_off_and_a_good_one_on_again():
    trust, switches = DraftTrust(), []
    for was_right in (False, False, False):
        switches.append(trust.learn(was_right))
    assert switches.count(True) == 1
    assert not trust.is_on
    assert trust.right.value < OFF_BELOW
    seen = []
    while not trust.is_on:
        trust.learn(True)
        seen.append(trust.right.value)
        assert len(seen) < 50
    assert max(seen[:-1]) < ON_ABOVE <= seen[-1]
    # Between the thresholds nothing switches: it takes more than one answer to go back.
    assert not trust.learn(False)
    assert trust.is_on


def test_switching_off_is_published_with_the_figure():
    wrong = (Drafted("turn(20)"), "turn(-20)")
    world = world_of(wrong, wrong, wrong, wrong, END)
    world.run()
    assert len(starts(world)) == 1
    assert len(details(world, "off")) == 1
    assert "%" in details(world, "off")[0]
    assert details(world, "refused")[-1].startswith("start_record")


def test_what_the_gate_refuses_is_told_and_ends_no_answer():
    world = world_of(
        (Drafted("forward(1)"), "forward(1)"), END, refusal="start_obstacle: 0.10 m too near for a motion"
    )
    assert world.run().status == "done"
    assert details(world, "refused") == ["start_obstacle: 0.10 m too near for a motion"]
    assert world.engine.seen[1].history == ("forward(1)",)


@pytest.mark.parametrize(("approve", "dry_run"), [(True, False), (False, True)])
def test_with_approval_or_a_dry_run_nothing_begins(approve, dry_run):
    world = world_of((Drafted("turn(20)"), "turn(20)"), END)
    world.feed.wait_approval = lambda timeout_s: True
    world.run(MissionJob("m1", "go", approve=approve, dry_run=dry_run))
    assert not starts(world)
    assert not any(world.engine.previews)


def test_the_draft_alone_does_not_start_on_itself():
    world = world_of((CloudUnreachable("gone"),), END, config=replace(DRAFT, fallback="draft_only"))
    world.engines.alone, world.engines.returns_after = DraftingEngine([[Drafted("turn(20)"), "turn(20)"]]), 2
    world.run()
    assert not starts(world)
    assert not any(world.engines.alone.previews)


def test_a_cloud_that_is_lost_on_the_draft_stops_the_robot():
    world = world_of(
        (Drafted("turn(60)"), CloudUnreachable("gone")), END, config=replace(DRAFT, fallback="hold")
    )
    assert world.run().status == "done"
    plans = world.of(Plan)
    at = next(i for i, plan in enumerate(plans) if plan.draft_start)
    assert (plans[at + 1].actions, plans[at + 1].answer) == ((), plans[at].answer + 1)
    assert plans[at + 1].verified


def test_a_cancel_while_on_the_draft_ends_the_mission_with_an_empty_plan():
    world = world_of((Drafted("turn(60)"), "turn(60)"), END)
    hear = world.runner._emit

    def cancelling(job, report):
        hear(job, report)
        if isinstance(report, Plan) and report.draft_start:
            world.feed.cancel(job.mission, "asked for")

    world.runner._emit = cancelling
    assert world.run().status == "cancelled"
    assert (world.of(Plan)[-1].actions, world.of(Plan)[-1].final) == ((), True)
    assert not any(plan.actions and not plan.draft_start for plan in world.of(Plan))


@pytest.mark.parametrize(("started", "looks"), [("forward(1)", 3), ("turn(20)", 2)])
def test_an_end_that_was_decided_before_a_wrong_walk_is_not_believed(started, looks):
    world = world_of(("turn(5)",), (Drafted(started), "there . ", "done()"), END)
    world.executor.started.clear()
    assert world.run().status == "done"
    assert len(world.engine.seen) == looks


def test_an_engine_that_shows_no_draft_is_asked_as_ever():
    class Plain(ScriptedEngine):
        def answer(self, observation):
            return super().answer(observation)

    world = World(Plain([["turn(20)"], ["done()"]]), EchoExecutor(), QUICK)
    assert world.run().status == "done"
