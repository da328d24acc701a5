"""The console beside the other nodes: a page sees what they publish, and its commands arrive."""

import time

import pytest
from rcl_interfaces.msg import Log
from sensor_msgs.msg import CompressedImage

from test.mission.scripted import ScriptedEngine
from test.ros.test_vlm_node import Source
from test.serve.console_rig import COMMANDER, Client
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.token_fates import TokenPiece
from vlm_spec_decode.mission.reports import AnswerReport
from vlm_spec_decode.robot.fake import FakeRobot
from vlm_spec_decode.ros.console_robot import pieces_of
from vlm_spec_decode.ros.convert import to_compressed
from vlm_spec_decode.ros.nodes.console import ConsoleNode
from vlm_spec_decode.ros.nodes.locomotion import LocomotionNode
from vlm_spec_decode.ros.nodes.vlm import VlmNode

pytestmark = pytest.mark.ros


@pytest.fixture
def tokens(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"lab {COMMANDER} command\n")
    file.chmod(0o600)
    return str(file)


@pytest.fixture
def robot(graph, image, sensor_qos):
    """The other nodes, on a fake robot, with a camera that always shows the same."""
    clock = WallClock()
    made = FakeRobot(clock)
    made.set_pose(0, 0, 0)
    legs, brain, eye = graph.node("locomotion_node"), graph.node("vlm_node"), graph.node("eye")
    pictures = eye.create_publisher(CompressedImage, "camera/image_raw/compressed", sensor_qos)
    eye.create_timer(0.1, lambda: pictures.publish(to_compressed(image, time.time(), "camera")))
    graph.start(eye)
    graph.start(legs, LocomotionNode(legs, made, clock, print))
    script = [["ahead. forward(0.4) done()"], ["far. forward(3) ", "…"]]
    graph.start(brain, VlmNode(brain, Source(ScriptedEngine(script)), clock, print))
    made.script = script
    return made


def test_a_page_commands_the_nodes_and_sees_them(graph, eventually, robot, tokens):
    node = graph.node("console_node", bind="127.0.0.1:0", tokens=tokens)
    part = graph.start(node, ConsoleNode(node, WallClock()))
    port = int(part.url.rpartition(":")[2])
    page, video = Client(port, robot="robot"), Client(port, kind="video", robot="robot")
    assert page.until(lambda event: event["type"] == "welcome")["facts"]["geofence"] == []
    page.until(lambda event: event["type"] == "cloud" and event["state"] == "ready", 20)
    page.until(lambda event: event["type"] == "executor" and event["state"] == "idle", 20)
    assert video.socket.recv(timeout=10).startswith(b"\xff\xd8")
    assert page.command("instruct", instruction="go to the red ball", approve=True)["type"] == "done"
    shown = page.until(lambda event: event["type"] == "mission" and event["state"] == "proposed", 20)
    plan = {"mission": shown["mission"], "step": shown["step"], "plan": shown["detail"]}
    assert "another plan" in page.command("approve", **plan | {"plan": "forward(3)"})["detail"]
    assert page.command("approve", **plan)["type"] == "done"
    page.until(lambda event: event["type"] == "mission" and event["state"] == "done", 20)
    answer = page.until(lambda event: event["type"] == "answer")
    assert (answer["text"], answer["total_s"]) == ("ahead. forward(0.4) done()", 0.3)
    plan = page.until(lambda event: event["type"] == "plan" and event["actions"])
    assert plan["path"][1][0] == pytest.approx(0.4, abs=0.05)
    page.until(lambda event: event["type"] == "body" and event["x"] > 0.3)
    page.until(lambda event: event["type"] == "body" and event["battery"] == 1.0, 20)
    assert page.command("instruct", instruction="go on")["type"] == "done"
    page.until(lambda event: event["type"] == "source" and event["source"] == "language", 20)
    assert eventually(lambda: robot.state().speed_mps > 0.2)
    assert page.command("stop")["type"] == "done"
    assert eventually(lambda: robot.state().is_still)
    page.until(lambda event: event["type"] == "source" and event["source"] == "estop", 20)
    page.until(lambda event: event["type"] == "mission" and event["state"] == "cancelled", 20)
    assert page.command("release")["type"] == "done"
    for _ in range(10):
        page.send(type="drive", x=0.5, y=0, turn=0)
        time.sleep(0.05)
    assert robot.state().speed_mps > 0.05
    page.close()
    assert eventually(lambda: robot.state().is_still, 3.0)
    video.close()


def test_a_page_replies_to_what_the_robot_asks(graph, eventually, robot, tokens):
    robot.script[:] = [["red chair , blue chair . do you mean the red or the blue chair ? ask()"], ["done()"]]
    node = graph.node("console_node", bind="127.0.0.1:0", tokens=tokens)
    part = graph.start(node, ConsoleNode(node, WallClock()))
    page = Client(int(part.url.rpartition(":")[2]), robot="robot")
    page.until(lambda event: event["type"] == "executor" and event["state"] == "idle", 20)
    assert page.command("instruct", instruction="go to the chair")["type"] == "done"
    asked = page.until(lambda event: event["type"] == "mission" and event["state"] == "waiting", 20)
    assert asked["choices"] == ["the red", "the blue chair"]
    named = {"mission": asked["mission"], "step": asked["step"]}
    assert "nobody waits" in page.command("reply", word="the red", **named | {"step": 9})["detail"]
    assert page.command("reply", word="the red", **named)["type"] == "done"
    page.until(lambda event: event["type"] == "mission" and event["state"] == "done", 20)
    assert "answered already" in page.command("reply", word="the blue chair", **named)["detail"]
    page.close()


def test_a_page_of_nodes_that_are_away_says_so(graph, tokens):
    node = graph.node("console_node", bind="127.0.0.1:0", tokens=tokens, robots="go2_a, /lab/go2_b")
    part = graph.start(node, ConsoleNode(node, WallClock()))
    page = Client(int(part.url.rpartition(":")[2]), robot="lab.go2_b")
    assert page.until(lambda event: event["type"] == "welcome")["facts"]["title"].endswith("/lab/go2_b")
    assert "no vlm_node" in page.command("instruct", instruction="go")["detail"]
    assert "no locomotion_node answers to /lab/go2_b/e_stop" in page.command("stop")["detail"]
    page.close()


def test_the_log_of_the_node_holds_no_token(graph, eventually, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    ear = graph.node("ear")
    logged = graph.listen(ear, Log, "/rosout", 100)
    graph.start(ear)
    node = graph.node("console_node", bind="127.0.0.1:0")
    part = graph.start(node, ConsoleNode(node, WallClock()))
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    links = file.read_text()
    token = links.partition("token=")[2].split()[0]
    assert eventually(lambda: [line for line in logged if str(file) in line.msg])
    page = Client(int(part.url.rpartition(":")[2]), token, robot="robot")
    assert page.until(lambda event: event["type"] == "welcome")["may"] == ["view", "command"]
    page.close()
    said = "".join(capfd.readouterr()) + "".join(line.msg for line in logged)
    assert part.url in said
    assert "token=" not in said
    assert token not in said
    part.close()
    assert not file.exists()


def test_tokens_of_a_report_have_their_fates():
    report = AnswerReport(
        mission="m",
        number=1,
        text="i see it",
        token_fates=("accepted", "target", "unverified"),
        token_ends=(2, 5, 8),
    )
    fates = (TokenPiece("i ", "accepted"), TokenPiece("see", "corrected"), TokenPiece(" it", "drafted"))
    assert pieces_of(report) == fates
    assert pieces_of(AnswerReport(mission="m", number=1, text="it")) == (TokenPiece("it", "committed"),)
