import pytest

from vlm_spec_decode.actions.parser import parse_action
from vlm_spec_decode.actions.plan import PlanStatus
from vlm_spec_decode.mission.progress import MissionProgress, robot_line
from vlm_spec_decode.mission.queue import Ack
from vlm_spec_decode.mission.reports import AnswerReport, DecodeReport
from vlm_spec_decode.mission.state import LOOK_DROPPED, LOOK_USED, MissionStatus, PartialAnswer

TRACE = DecodeReport(
    mission="m",
    number=1,
    strategy="hybrid",
    rule="coupled",
    tokens=9,
    rounds=(),
    drafted=6,
    accepted=5,
    acceptance_rate=5 / 6,
    target_passes=2,
    early_verdicts=0,
    time_to_first_token_s=0.1,
    time_to_first_action_s=0.2,
    total_s=0.4,
)


def status(state, reason="", detail="", mission="m", step=1):
    return MissionStatus(
        state=state, mission=mission, instruction="go", step=step, reason=reason, detail=detail
    )


def answer(*actions, text="", mission="m"):
    return AnswerReport(mission=mission, number=1, text=text, actions=tuple(map(parse_action, actions)))


def tell(progress, *reports):
    return "".join(map(progress.on_report, reports))


def test_the_answer_streams_and_the_robot_follows():
    progress = MissionProgress("m")
    said = tell(
        progress,
        status("looking"),
        status("answering"),
        PartialAnswer("Ball"),
        PartialAnswer("Ball ahead."),
        PartialAnswer("Ball ahead. forward(1)"),
        answer("forward(1)"),
        TRACE,
        PlanStatus("m", 1, 0, "moving", action="forward(1)"),
        PlanStatus("m", 1, 0, "moving", action="forward(1)"),
        status("done"),
    )
    assert "    Ball ahead. forward(1)\n" in said
    assert said.count("> forward(1)") == 1
    assert said.endswith("done\n")
    assert (progress.has_ended, progress.exit_code, progress.actions) == (True, 0, ["forward(1)"])


def test_an_answer_whose_parts_were_lost_or_come_later_is_told_once():
    progress = MissionProgress("m")
    said = tell(
        progress,
        status("answering"),
        answer("turn(20)", text="Ball left. turn(20)"),
        PartialAnswer("Ball"),
        PartialAnswer("Ball left. turn(20)"),
        status("done"),
    )
    assert said.splitlines() == ["[1] looks", "    Ball left. turn(20)", "done"]


def test_other_missions_are_not_told():
    progress = MissionProgress("m")
    said = tell(
        progress,
        status("answering", mission="other"),
        PartialAnswer("their answer"),
        PlanStatus("other", 1, 0, "moving", action="forward(1)"),
        status("done", mission="other"),
    )
    assert said == ""
    assert not progress.has_ended


@pytest.mark.parametrize(
    ("state", "reason", "code"),
    [
        ("done", "dry_run", 0),
        ("refused", "obstacle", 1),
        ("cancelled", "estop", 1),
        ("step_limit", "", 1),
        ("failed", "CloudUnreachable", 3),
        ("failed", "CloudRefused", 3),
        ("failed", "RobotUnreachable", 4),
        ("failed", "ActionParseError", 1),
    ],
)
def test_exit_codes(state, reason, code):
    progress = MissionProgress("m")
    tell(progress, status(state, reason))
    assert progress.exit_code == code


def test_a_request_that_is_refused_unread_ends_with_wrong_usage():
    progress = MissionProgress("m")
    refusal = MissionStatus(state="failed", reason="InstructionError", detail="too long")
    assert "too long" in tell(progress, refusal)
    assert (progress.has_ended, progress.exit_code) == (True, 2)


def test_a_plan_that_waits_for_a_yes_is_shown_once():
    progress = MissionProgress("m")
    tell(progress, status("proposed", "approve", "turn(20)"))
    assert progress.proposed == "turn(20)"
    tell(progress, status("acting"))
    assert progress.proposed == ""


def test_an_answer_is_not_split_by_what_the_robot_does_meanwhile():
    progress = MissionProgress("m")
    moving = PlanStatus("m", 1, 0, "moving", action="turn(20)")
    said = tell(
        progress,
        status("answering"),
        PartialAnswer("Ball left. turn(20) "),
        moving,
        PartialAnswer("Ball left. turn(20) forward(1)"),
        answer("turn(20)", "forward(1)"),
        PlanStatus("m", 1, 1, "moving", action="forward(1)"),
    )
    assert said.splitlines()[1:] == [
        "    Ball left. turn(20) forward(1)",
        "    > turn(20)",
        "    > forward(1)",
    ]


def test_an_answer_that_is_broken_off_still_lets_the_rest_be_told():
    progress = MissionProgress("m")
    stopped = PlanStatus("m", 1, 0, "stopped", "cancel", action="turn(20)")
    said = tell(
        progress,
        status("answering"),
        PartialAnswer("Ball left."),
        stopped,
        status("cancelled", "cancel"),
    )
    assert said.splitlines()[1:] == ["    Ball left.", "    ! stopped turn(20): cancel", "cancelled: cancel"]


def test_a_note_in_the_middle_of_an_answer_lets_it_begin_anew():
    progress = MissionProgress("m")
    said = tell(progress, status("answering"), PartialAnswer("Ball"))
    said += progress.note("    … 5 s; waiting for the answer")
    said += tell(progress, PartialAnswer("Ball left."))
    assert said.splitlines()[1:] == ["    Ball", "    … 5 s; waiting for the answer", "    Ball left."]


def test_the_node_acknowledges_refuses_or_says_how_it_ended():
    progress = MissionProgress("m")
    tell(progress, Ack(state="taken", mission="other", listeners=3))
    assert not progress.is_acknowledged
    tell(progress, Ack(state="taken", mission="m", listeners=3))
    assert (progress.is_acknowledged, progress.listeners, progress.has_ended) == (True, 3, False)
    said = tell(
        progress,
        Ack(state="over", mission="m", status="cancelled", detail="withdrawn"),
    )
    assert (said, progress.has_ended, progress.exit_code) == ("cancelled: withdrawn\n", True, 1)
    assert tell(progress, status("cancelled")) == "", "its end is told once"
    progress = MissionProgress("m")
    tell(
        progress,
        Ack(state="refused", mission="m", reason="InstructionError", detail="used"),
    )
    assert (progress.has_ended, progress.exit_code) == (True, 2)


def test_a_refusal_of_somebody_else_is_not_mine_once_mine_is_taken():
    progress = MissionProgress("m")
    tell(progress, Ack(state="taken", mission="m"))
    refusal = MissionStatus(state="failed", reason="InstructionError", detail="too long")
    assert tell(progress, refusal) == ""
    assert not progress.has_ended


def test_a_start_on_the_draft_is_told_where_it_happens_and_begins_no_new_look():
    progress = MissionProgress("m")
    begun = PlanStatus("m", 1, 0, "moving", action="turn(20)", start="begun", start_detail="turn(20)")
    confirmed = PlanStatus("m", 1, 0, "moving", action="turn(20)", start="confirmed", start_detail="turn(20)")
    said = tell(
        progress,
        status("answering"),
        status("answering", "start_begun", "turn(20), not verified"),
        begun,
        PartialAnswer("Ball left. turn(20)"),
        status("answering", "start_confirmed", "the cloud says turn(20)"),
        confirmed,
        answer("turn(20)"),
        status("done"),
    )
    assert said.splitlines() == [
        "[1] looks",
        "    ~ begins on the draft: turn(20), not verified",
        "    > turn(20) (not verified)",
        "    Ball left. turn(20)",
        "    ~ the start on the draft was right: the cloud says turn(20)",
        "    > turn(20)",
        "done",
    ]


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("begun", "moving turn(20) (on the draft, not verified: turn(20))"),
        ("confirmed", "moving turn(20) (begun on the draft, confirmed: turn(20))"),
        ("", "moving turn(20)"),
    ],
)
def test_the_robots_line_says_whether_it_moves_on_the_draft(start, words):
    moving = PlanStatus("m", 1, 0, "moving", action="turn(20)", start=start, start_detail="turn(20)")
    assert robot_line(moving) == words


def test_answers_about_frames_asked_about_at_once_are_told_each_with_its_number():
    def look(number: int, state: str, reason: str = "", detail: str = "") -> MissionStatus:
        return MissionStatus(state=state, mission="m", step=number, reason=reason, detail=detail)

    used = "answer 3, its frame 2.1 s old: told anew as turn(-95) forward(1)"
    said = tell(
        MissionProgress("m"),
        look(3, "answering", "", "searching while it turns"),
        PartialAnswer("i see a box left ."),
        look(4, "answering", "", "searching while it turns"),
        PartialAnswer("nothing ."),
        AnswerReport(
            mission="m",
            number=3,
            text="i see a box left . turn(20) forward(1)",
            actions=(parse_action("turn(20)"), parse_action("forward(1)")),
        ),
        look(4, "answering", LOOK_DROPPED, "answer 4, its frame 0.9 s old: given up"),
        look(3, "answering", LOOK_USED, used),
        look(3, "done"),
    )
    assert said.splitlines() == [
        "[3] looks",
        "    i see a box left .",
        "[4] looks",
        "    nothing .",
        "    [3] i see a box left . turn(20) forward(1)",
        "    ~ not used: answer 4, its frame 0.9 s old: given up",
        f"    ~ goes by: {used}",
        "done",
    ]
