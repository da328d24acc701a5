"""What the console shows: snapshot and changes, missions that are kept, token fates."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from test.mission.scripted import plain_jpeg, result_of
from vlm_spec_decode.actions.plan import Plan, PlanStatus
from vlm_spec_decode.actions.types import Forward, Turn
from vlm_spec_decode.core.token_fates import TokenFates, TokenPiece
from vlm_spec_decode.core.types import AnswerRequest, Commit, DraftMessage, Image, Observation, SamplingParams
from vlm_spec_decode.mission.state import Answer, MissionStatus, PartialAnswer
from vlm_spec_decode.serve.console import state as console_state
from vlm_spec_decode.serve.console.answers import AnswerFigures
from vlm_spec_decode.serve.console.state import Body, ConsoleState, RobotFacts
from vlm_spec_decode.serve.console.video import VideoFeed


class Clock:
    now_s = 0.0

    def now(self):
        return self.now_s


def make():
    clock = Clock()
    return ConsoleState(RobotFacts(name="go2", title="a Go2"), clock), clock


def status(state, mission="m", **fields):
    return MissionStatus(state=state, mission=mission, instruction="go", **fields)


def one_mission(state, clock, name="m"):
    state.on_status(status("looking", name))
    state.on_body(Body(pose=(1.0, 0.0, 0.0), speed_mps=0.0, battery=0.8, ranges_m=(math.inf, 1.0, 2.0, 3.0)))
    state.on_status(status("answering", name))
    state.on_partial(PartialAnswer("forward(1)"))
    state.on_plan(Plan(name, 1, 0.0, 0, (Forward(1.0), Turn(90.0))))
    clock.now_s += 1
    image = Image(plain_jpeg(), 32, 24)
    observation = Observation(image, "go", (), 0.0, "camera")
    state.on_answer(
        Answer(
            mission=name,
            number=1,
            observation=observation,
            actions=(Forward(1.0),),
            result=result_of("forward(1)"),
        )
    )
    state.on_executor(PlanStatus(name, 1, 1, "done", executed=("forward(1)",)))
    state.on_status(status("done", name))


def test_a_page_that_comes_late_sees_what_one_that_was_there_saw():
    state, clock = make()
    early = []
    state.subscribe(early.append)
    one_mission(state, clock)
    late = state.subscribe(lambda _: None)
    newest = {event["type"]: event for event in early if event["type"] not in {"missions", "figure"}}
    assert {event["type"]: event for event in late if event["type"] in newest} == newest
    assert json.dumps(late, allow_nan=False)


def test_a_plan_leads_from_where_the_body_stood_and_its_heartbeats_are_no_news():
    state, _ = make()
    heard = []
    state.on_body(Body(pose=(1.0, 0.0, math.pi / 2)))
    state.subscribe(heard.append)
    plan = Plan("m", 1, 0.0, 0, (Forward(1.0), Turn(90.0)))
    for _ in range(3):
        state.on_plan(plan)
        state.on_body(Body(pose=(1.0, 0.5, math.pi / 2)))
    plans = [event for event in heard if event["type"] == "plan"]
    assert len(plans) == 1
    assert plans[0]["path"] == [[1.0, 0.0, 1.571], [1.0, 1.0, 1.571], [1.0, 1.0, 3.142]]


def test_a_mission_can_be_replayed_with_the_picture_of_its_answer():
    state, clock = make()
    one_mission(state, clock, "first")
    one_mission(state, clock, "second")
    events = json.loads(state.replay("first"))
    kinds = [event["type"] for event in events]
    assert kinds == ["mission", "body", "mission", "tokens", "plan", "answer", "executor", "mission"]
    assert [event["t"] for event in events] == sorted(event["t"] for event in events)
    assert state.frame_of("first", 1) == plain_jpeg()
    assert state.frame_of("first", 2) is None
    assert state.replay("third") is None


def test_old_missions_and_pictures_make_room(monkeypatch):
    state, clock = make()
    monkeypatch.setattr(console_state, "MAX_FRAME_BYTES", 3 * len(plain_jpeg()))
    names = [f"m{number}" for number in range(console_state.MAX_MISSIONS + 5)]
    for name in names:
        one_mission(state, clock, name)
    assert state.replay(names[4]) is None
    assert state.replay(names[5]) is not None
    assert [name for name in names if state.frame_of(name, 1)] == names[-3:]


def test_the_record_of_a_mission_is_bounded_in_bytes_and_does_not_grow_with_every_token(monkeypatch):
    state, clock = make()
    state.on_status(status("looking"))
    pieces = ()
    for number in range(400):
        clock.now_s += 0.005
        pieces += (TokenPiece(f"word{number} ", "accepted"),)
        state.on_tokens(1, pieces)
    kept = [event for event in json.loads(state.replay("m")) if event["type"] == "tokens"]
    assert len(kept) <= 2.0 / console_state.RECORDED_TOKENS_S + 1
    assert len(kept[-1]["pieces"]) == 400, "the last one is always there"
    monkeypatch.setattr(console_state, "MAX_MISSION_BYTES", 20_000)
    for number in range(500):
        state.on_plan(Plan("m", number, 0.0, 0, (Forward(1.0), Turn(90.0))))
    text = state.replay("m")
    assert 15_000 < len(text) <= 21_000
    assert json.loads(text)[-1]["answer"] == 499, "the oldest make room"


def test_the_records_of_all_missions_are_bounded_in_bytes(monkeypatch):
    state, clock = make()
    one_mission(state, clock, "m0")
    monkeypatch.setattr(console_state, "MAX_EVENT_BYTES", 3 * len(state.replay("m0")) + 200)
    for number in range(1, 8):
        one_mission(state, clock, f"m{number}")
    assert [number for number in range(8) if state.replay(f"m{number}")] == [5, 6, 7]
    assert [row["mission"] for row in state.snapshot()[0]["missions"]] == [
        f"m{n}" for n in reversed(range(8))
    ]


def test_what_is_no_number_is_null_on_a_page():
    state, _ = make()
    state.on_status(status("answering"))
    heard = []
    state.subscribe(heard.append)
    figures = AnswerFigures(
        mission="m", number=1, text="", pieces=(), actions=(), total_s=math.nan, rounds=((math.inf, 1.0),)
    )
    state.on_figures(figures)
    texts = [console_state.encode(event) for event in heard]
    found = [json.loads(text, parse_constant=lambda name: 1 / 0) for text in texts]
    answer = next(event for event in found if event["type"] == "answer")
    assert (answer["total_s"], answer["rounds"]) == (None, [[None, 1.0]])
    json.loads(state.replay("m"), parse_constant=lambda name: 1 / 0)


def test_a_standing_body_is_no_news_and_a_walking_one_at_most_ten_times_a_second():
    state, clock = make()
    heard = []
    state.subscribe(heard.append)
    for tick in range(100):
        clock.now_s += 0.02
        state.on_body(Body(pose=(0.0001 * tick, 0.0, 0.0)))
    assert len([event for event in heard if event["type"] == "body"]) <= 2
    heard.clear()
    for tick in range(100):
        clock.now_s += 0.02
        state.on_body(Body(pose=(0.1 * tick, 0.0, 0.0)))
    assert 15 <= len(heard) <= 21


def decode(tokens):
    return "".join(" abcdefghijklmnop"[token] for token in tokens)


def fates_of(messages):
    heard = []
    fates = TokenFates(
        decode, lambda: 10.0 * len(heard), lambda number, pieces: heard.append((number, pieces))
    )
    observation = Observation(None, "go", (), 0.0)
    fates.opened(AnswerRequest(7, observation, SamplingParams(), "hybrid"))
    for message in messages:
        fates.sent(message) if isinstance(message, DraftMessage) else fates.received(message)
    return heard


def test_every_token_is_drafted_then_accepted_or_corrected():
    heard = fates_of(
        [
            DraftMessage(7, 0, 0, 1, (1, 2, 3), (0, 1, 2)),
            Commit(7, 0, 0, (1, 2, 9), 2, 1, False),
            DraftMessage(7, 0, 3, 4, (4,), (0,)),
            Commit(7, 0, 3, (4, 5), 4, 2, True),
        ]
    )
    assert heard[1] == (7, tuple(TokenPiece(letter, "drafted") for letter in "abc"))
    committed = (TokenPiece("a", "accepted"), TokenPiece("b", "accepted"), TokenPiece("i", "corrected"))
    assert heard[2] == (7, committed)
    assert heard[3] == (7, (*committed, TokenPiece("d", "drafted")))
    assert heard[4] == (7, (*committed, TokenPiece("d", "accepted"), TokenPiece("e", "corrected")))


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4), st.lists(st.integers(1, 16), min_size=1, max_size=12)
)
def test_the_pieces_always_make_the_text_also_when_a_commit_comes_twice(lengths, tokens):
    messages, at = [], 0
    while at < len(tokens):
        length = lengths[at % len(lengths)]
        part = tuple(tokens[at : at + length])
        commit = Commit(7, 0, at, part, 0, at, at + length >= len(tokens))
        messages += [commit, commit]
        at += length
    heard = fates_of(messages)
    assert "".join(piece.text for piece in heard[-1][1]) == decode(tokens)
    assert {piece.fate for piece in heard[-1][1]} == {"corrected"}


def test_the_video_keeps_no_picture_that_nobody_sees():
    feed, heard = VideoFeed(), []
    image = Image(plain_jpeg(), 32, 24)
    feed.put(image)
    feed.join()
    feed.after(0, heard.append)
    assert heard == []
    feed.put(image)
    feed.after(0, heard.append)
    assert [frame.number for frame in heard] == [1, 1]
    feed.leave()
    assert feed.viewers == 0
