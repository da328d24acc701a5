"""A terminal among foreign publishers: what is none of our messages ends no command."""

from types import SimpleNamespace

import pytest
from rich.console import Console

from vlm_spec_decode.actions.plan import PlanStatus
from vlm_spec_decode.mission.progress import MissionProgress
from vlm_spec_decode.ros.operator import Operator
from vlm_spec_decode.ros.status_board import StatusBoard, view

TOPICS = ("vlm/ack", "vlm/status", "vlm/answer", "vlm/plan/status", "vlm/trace")
FOREIGN = ("", "{", "[]", "null", "7", '"text"', "{}", '{"mission": "m"}', '{"mission": "m", "state": {}}')


@pytest.mark.parametrize(
    "hearer", [MissionProgress("m").on_message, StatusBoard().on_message], ids=["say", "top"]
)
@pytest.mark.parametrize("topic", TOPICS)
@pytest.mark.parametrize("text", FOREIGN)
def test_what_is_no_message_of_ours_is_said_once_and_ends_nothing(hearer, topic, text, capsys):
    operator = Operator.__new__(Operator)
    operator._on_text, operator._unreadable = hearer, set()
    take = operator._callback(topic)
    for _ in range(3):
        take(SimpleNamespace(data=text))
    said = capsys.readouterr().err.splitlines()
    assert len(said) <= 1
    assert all(line.startswith(f"vsd: ignored a message on {topic}: ") for line in said)


@pytest.mark.parametrize("topic", ["vlm/status", "vlm/plan/status", "vlm/trace"])
def test_a_board_keeps_nothing_but_objects(topic):
    board = StatusBoard()
    with pytest.raises(ValueError, match="JSON object"):
        board.on_message(topic, "[]")
    assert (board.status, board.executor, board.trace) == ({}, {}, {})


def test_a_message_that_cannot_be_read_is_named(capsys):
    operator = Operator.__new__(Operator)
    operator._on_text, operator._unreadable = MissionProgress("m").on_message, set()
    operator._callback("vlm/status")(SimpleNamespace(data="{"))
    assert "JSONDecodeError" in capsys.readouterr().err


def test_a_board_shows_that_the_robot_moves_on_the_draft():
    board = StatusBoard()
    status = PlanStatus("m", 1, state="moving", action="turn(20)", start="begun", start_detail="turn(20)")
    board.on_message("vlm/plan/status", status.to_json())
    console = Console(record=True, width=100)
    console.print(view(board))
    assert "moving turn(20) (on the draft, not verified: turn(20))" in console.export_text()
