"""A terminal among foreign publishers: what is none of our messages ends no command."""

from types import SimpleNamespace

import pytest

from vlm_spec_decode.mission.progress import MissionProgress
from vlm_spec_decode.ros.operator import Operator
from vlm_spec_decode.ros.status_board import StatusBoard

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
