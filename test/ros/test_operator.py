"""A terminal among foreign publishers: what is none of our messages ends no command."""

import pytest
from rich.console import Console

from vlm_spec_decode.actions.plan import PlanStatus
from vlm_spec_decode.mission.progress import MissionProgress
from vlm_spec_decode.mission.state import MissionStatus
from vlm_spec_decode.ros import typed
from vlm_spec_decode.ros.operator import Operator
from vlm_spec_decode.ros.status_board import StatusBoard, view
from vlm_spec_decode_msgs import msg

FOREIGN = {
    "vlm/ack": msg.MissionAck(),
    "vlm/status": msg.MissionStatus(state=99),
    "vlm/answer/typed": msg.Answer(actions=[msg.RobotAction(kind=77)]),
    "vlm/plan/status": msg.PlanStatus(),
}


def operator_of(hearer):
    operator = Operator.__new__(Operator)
    operator._on_report, operator._unreadable = hearer, set()
    return operator


@pytest.mark.parametrize("hearer", [MissionProgress, StatusBoard], ids=["say", "top"])
@pytest.mark.parametrize("topic", FOREIGN)
def test_what_cannot_be_read_is_said_once_and_ends_nothing(hearer, topic, capsys):
    told = hearer("m") if hearer is MissionProgress else hearer()
    take = operator_of(told.on_report)._callback(topic)
    for _ in range(3):
        take(FOREIGN[topic])
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"vsd: ignored a message on {topic}: ActionParseError: ")


def test_a_board_keeps_the_newest_of_each_kind_and_gives_them_as_before():
    board = StatusBoard()
    take = operator_of(board.on_report)._callback("vlm/status")
    for state in ("looking", "answering"):
        take(typed.mission_status_to_message(MissionStatus(state=state, mission="m", step=2)))
    assert board.status == MissionStatus(state="answering", mission="m", step=2)
    found = board.document()
    assert found["status"] == {
        "state": "answering", "mission": "m", "instruction": "", "step": 2, "reason": "", "detail": "",
    }  # fmt: skip
    assert (found["executor"], found["trace"]) == ({}, {})


def test_an_error_of_the_hearer_is_not_taken_for_one_of_the_message():
    def closed(_):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        operator_of(closed)._callback("vlm/status")(msg.MissionStatus(state=3))


def test_a_board_shows_that_the_robot_moves_on_the_draft():
    board = StatusBoard()
    board.on_report(
        PlanStatus("m", 1, state="moving", action="turn(20)", start="begun", start_detail="turn(20)")
    )
    console = Console(record=True, width=100)
    console.print(view(board))
    assert "moving turn(20) (on the draft, not verified: turn(20))" in console.export_text()
