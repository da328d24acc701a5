"""The console without a browser: who may do what, the stop, the dead man's switch, hostile requests."""

import base64
import hashlib
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import websockets.exceptions

from test.serve.console_rig import COMMANDER, VIEWER, Client, SlowRobot, rig, wait_for
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import ConfigError, RobotError
from vlm_spec_decode.serve.access import bind_address
from vlm_spec_decode.serve.console import settings as console_settings
from vlm_spec_decode.serve.console.app import MAX_MESSAGE_CHARS
from vlm_spec_decode.serve.console.commands import HANGS_S, MAX_PRESSES, STOP_AGAIN_S, CommandDesk, Page

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def served():
    with rig(["walk. forward(2) ", "…"]) as made:
        yield made


@pytest.fixture
def page(served):
    client = Client(served.port)
    yield client
    client.close()
    wait_for(lambda: served.robot.source in {"none", "estop"})
    if served.robot.is_stopped:
        wait_for(lambda: served.speed_mps == 0)
        served.robot.release()


def get(served, path, token=COMMANDER, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=5)
    if token:
        headers["Authorization"] = f"Bearer {token}"
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_a_mission_runs_and_the_stop_ends_it(served, page):
    assert page.until(lambda event: event["type"] == "welcome")["may"] == ["view", "command"]
    assert page.command("instruct", instruction="go to the red ball")["type"] == "done"
    page.until(lambda event: event["type"] == "executor" and event["state"] == "moving")
    wait_for(lambda: served.speed_mps > 0.2)
    began_s = time.monotonic()
    assert "stands" in page.command("stop")["detail"]
    assert time.monotonic() - began_s < 1.5
    assert served.robot.is_stopped
    page.until(lambda event: event["type"] == "mission" and event["state"] == "cancelled")
    assert "e-stop" in page.command("instruct", instruction="go on")["detail"]
    assert page.command("release")["type"] == "done"
    assert not served.robot.is_stopped


ASKS = ["red chair , blue chair . do you mean the red or the blue chair ? ask()"]


def test_a_yes_or_a_word_is_for_what_the_page_shows():
    with rig(ASKS, ["ahead . forward(0.2) ", "done()"]) as one:
        page, other = Client(one.port), Client(one.port)
        assert page.command("instruct", instruction="go to the chair", approve=True)["type"] == "done"
        first = shown(page.until(lambda event: event.get("state") == "proposed" and event["step"] == 1))
        assert "any more" in page.command("approve", **first | {"plan": "forward(3)"})["detail"]
        assert page.command("approve", **first)["type"] == "done"
        asked = page.until(lambda event: event.get("state") == "waiting")
        assert (asked["detail"], asked["choices"]) == (
            "do you mean the red or the blue chair ?",
            ["the red", "the blue chair"],
        )
        question = {"mission": asked["mission"], "step": asked["step"]}
        assert "any more" in other.command("approve", **first)["detail"]
        assert page.command("reply", word="the red", **question | {"mission": "another"})["type"] == "refused"
        long = page.command("reply", word="x" * 1990, **question)
        assert (long["type"], "room for" in long["detail"]) == ("refused", True)
        assert page.command("reply", word=" the red ", **question)["type"] == "done"
        assert "answered already" in other.command("reply", word="the blue chair", **question)["detail"]
        second = shown(page.until(lambda event: event.get("state") == "proposed" and event["step"] == 2))
        assert one.engine.seen[1].instruction == "go to the chair . the red"
        assert "any more" in other.command("approve", **first)["detail"], "the plan before"
        assert one.speed_mps == 0
        assert other.command("approve", **second)["type"] == "done"
        page.until(lambda event: event.get("state") == "done", 20)
        replies = [event for event in other.events if event.get("command") == "reply" and event["done"]]
        assert [event["detail"] for event in replies] == ["'the red'"]
        page.close()
        other.close()


def shown(event):
    return {"mission": event["mission"], "step": event["step"], "plan": event["detail"]}


def test_a_viewer_may_look_and_stop_and_nothing_else(served, page):
    viewer = Client(served.port, VIEWER)
    assert viewer.until(lambda event: event["type"] == "welcome")["may"] == ["view"]
    shown = {"mission": "m", "step": 1}
    for command in (
        {"command": "instruct", "instruction": "go"},
        {"command": "release"},
        {"command": "approve", **shown},
        {"command": "reply", "word": "the red one", **shown},
    ):
        assert viewer.command(**command)["type"] == "refused"
    viewer.send(type="drive", x=1, y=0, turn=0)
    assert (
        "not drive"
        in viewer.until(lambda event: event["type"] == "refused" and event["id"] is None)["detail"]
    )
    assert served.robot.source == "none"
    assert viewer.command("stop")["type"] == "done"
    # Every page sees it, and the refusals, too.
    told = page.until(lambda event: event["type"] == "command" and event["command"] == "stop")
    assert told["who"].startswith("viewer@127.0.0.1")
    viewer.close()


@pytest.mark.parametrize("way", ["silence", "close", "release", "abort"])
def test_a_page_that_drives_and_is_lost_stops_the_robot(served, page, way):
    other = Client(served.port)
    until_s = time.monotonic() + 1.0
    while time.monotonic() < until_s and served.speed_mps < 0.15:
        other.send(type="drive", x=0.6, y=0, turn=0)
        time.sleep(0.05)
    assert served.robot.source == "teleop"
    page.send(type="drive", x=-1, y=0, turn=0)
    assert "another page" in page.until(lambda event: event["type"] == "refused")["detail"]
    served.stops_s.clear()
    began_s = time.monotonic()
    if way == "close":
        other.close()
    elif way == "abort":
        other.socket.socket.shutdown(2)
    elif way == "release":
        other.send(type="drive", end=True)
    wait_for(lambda: served.stops_s, 2.0)
    assert served.stops_s[0] - began_s < (0.35 if way == "silence" else 0.15)
    wait_for(lambda: served.speed_mps == 0, 3.0)
    page.until(lambda event: event["type"] == "command" and event["detail"].startswith("ends"))
    wait_for(lambda: served.robot.source == "none")
    other.close()


def test_a_stop_needs_no_web_socket(served):
    answer, body = get(served, "/api/stop", VIEWER, "POST")
    assert answer.status == 200
    assert json.loads(body)["stopped"]
    assert served.robot.is_stopped
    served.robot.release()
    assert get(served, "/api/stop", VIEWER)[0].status == 405


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [
        ("/", "", 200), ("/static/main.js", "", 200), ("/static/map.js", "", 200),
        ("/static/index.html", COMMANDER, 404),
        ("/api/robots", COMMANDER, 200), ("/api/robots", "", 401), ("/api/robots", "wrong" * 5, 401),
        ("/api/frame/fake/page-1/1", "", 401), ("/api/frame/fake/none/1", COMMANDER, 404),
        ("/api/frame/other/none/1", COMMANDER, 404), ("/static/../app.py", COMMANDER, 404),
        ("/static/%2e%2e/app.py", COMMANDER, 404), ("/static/", COMMANDER, 404),
        ("//etc/passwd", COMMANDER, 404),
    ],
)  # fmt: skip
def test_what_is_served_and_to_whom(served, path, token, status):
    assert get(served, path, token)[0].status == status


def test_the_page_runs_nothing_that_is_not_its_own(served):
    answer, body = get(served, "/", "")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert b"style=" not in body
    assert b"onclick=" not in body
    assert b"http" not in body
    again, empty = get(served, "/", "", **{"If-None-Match": answer.headers["ETag"]})
    assert (again.status, empty) == (304, b"")


def test_the_page_is_small():
    total = sum(len(each.data) for each in console_files().values())
    assert total <= 400_000
    assert set(console_files()) >= {"/", "/static/main.js", "/static/connection.js"}


def test_what_is_drawn_first_is_in_one_file(served):
    """The style sheets are inside, by their digest; scripts wait until it is read, and all are named."""
    answer, body = get(served, "/", "")
    page = body.decode()
    assert 'rel="stylesheet"' not in page
    assert "--ground: " in page  # the theme
    assert ".stop-bar {" in page
    assert page.index(".stop-bar {") < page.index("<body>")
    sheet = page.partition("<style>")[2].partition("</style>")[0].encode()
    digest = base64.b64encode(hashlib.sha256(sheet).digest()).decode()
    assert f"style-src 'self' 'sha256-{digest}';" in answer.headers["Content-Security-Policy"]
    other = get(served, "/static/main.js", "")[0].headers["Content-Security-Policy"]
    assert "style-src 'self';" in other
    scripts = re.findall(r"<script\b[^>]*>", page)
    assert scripts == ['<script type="module" src="/static/main.js">']  # which blocks nothing
    preloaded = set(re.findall(r'rel="modulepreload" href="([^"]+)"', page))
    assert preloaded | {"/", "/static/main.js"} == set(console_files())


def console_files():
    from vlm_spec_decode.serve.console.app import static_files

    return static_files()


@pytest.mark.parametrize(
    "wrong",
    [
        {"token": "wrong-wrong-wrong-wrong"}, {"token": ""}, {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:1"}, {"robot": "other"}, {"kind": "nothing"},
    ],
)  # fmt: skip
def test_a_web_socket_without_token_or_of_another_origin_is_refused(served, wrong):
    with pytest.raises((websockets.exceptions.InvalidStatus, websockets.exceptions.ConnectionClosed)):
        Client(served.port, **wrong)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", "null", '"stop"', "{" * 3000, "[" * 7000,
        json.dumps({"type": "x" * MAX_MESSAGE_CHARS}),
        '{"type":"command"}', '{"type":"command","command":"instruct"}',
        '{"type":"command","command":"instruct","instruction":7}',
        '{"type":"command","command":"instruct","instruction":""}',
        '{"type":"command","command":"withdraw","mission":[]}', '{"type":"command","command":"__init__"}',
        '{"type":"command","command":"approve"}', '{"type":"command","command":"approve","mission":"m"}',
        '{"type":"command","command":"reject","mission":"m","step":0}',
        '{"type":"command","command":"approve","mission":"m","step":1,"plan":[]}',
        '{"type":"command","command":"reply","mission":"m","step":1}',
        '{"type":"command","command":"reply","mission":"m","step":1,"word":" "}',
        '{"type":"command","command":"reply","mission":"","step":1,"word":"the red one"}',
        '{"type":"drive"}', '{"type":"drive","x":NaN,"y":0,"turn":0}',
        '{"type":"drive","x":1e999,"y":0,"turn":0}',
        '{"type":"drive","x":true,"y":0,"turn":0}', '{"type":"drive","x":"1","y":0,"turn":0}',
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused_and_moves_nothing(served, page, text):
    page.socket.send(text)
    page.until(lambda event: event["type"] == "refused")
    assert served.speed_mps == 0
    assert page.command("stop")["type"] == "done"


def test_bytes_end_the_connection_and_nothing_else(served, page):
    other = Client(served.port)
    other.socket.send(b"\xff\x00")
    with pytest.raises((websockets.exceptions.ConnectionClosed, TimeoutError)):
        other.until(lambda event: event["type"] == "never", 2.0)
    assert page.command("withdraw", mission="none")["type"] == "done"


def test_pictures_come_as_fast_as_the_page_shows_them(served):
    video = Client(served.port, VIEWER, kind="video")
    first = [video.socket.recv(timeout=5) for _ in range(2)]
    assert all(each.startswith(b"\xff\xd8") for each in first)
    with pytest.raises(TimeoutError):
        video.socket.recv(timeout=0.4)
    video.socket.send("ok")
    assert video.socket.recv(timeout=5).startswith(b"\xff\xd8")
    video.close()
    wait_for(lambda: served.edge.video.viewers == 0)


def test_commands_are_limited_and_stops_are_not(served, page):
    found = [page.command("withdraw", mission="none")["type"] for _ in range(30)]
    assert found.count("done") >= 20
    assert found[-1] == "refused"
    page.send(type="replay", mission="none")
    assert (
        "too many" in page.until(lambda event: event["type"] == "refused" and event["id"] is None)["detail"]
    )
    assert all(page.command("stop")["type"] == "done" for _ in range(3))


@pytest.mark.slow
def test_the_command_serves_prints_its_links_and_ends_with_ctrl_c(tmp_path):
    command = [sys.executable, "-m", "vlm_spec_decode.cli", "console", "--robot", "fake", "--json"]
    with (tmp_path / "log").open("w+") as told:
        process = subprocess.Popen(
            [*command, "--bind", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=told, text=True
        )
        try:
            links = json.loads(process.stdout.readline())
            page = Client(int(links["url"].rpartition(":")[2]), links["command"].partition("token=")[2])
            assert page.until(lambda event: event["type"] == "welcome")["may"] == ["view", "command"]
            viewer = Client(int(links["url"].rpartition(":")[2]), links["view"].partition("token=")[2])
            assert viewer.command("stop")["type"] == "done"
            page.until(lambda event: event["type"] == "source" and event["source"] == "estop")
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        told.seek(0)
        log = told.read()
    assert "view@127.0.0.1 #2: stop stands" in log
    assert links["command"] in log


def test_a_stop_waits_for_no_other_command():
    robot = SlowRobot()
    desk = CommandDesk(robot, WallClock())
    page = Page(1, "somebody", True)
    for _ in range(10):
        desk.command(page, {"command": "instruct", "instruction": "go"})
    assert desk.stop(page).result(1.0) == "stopped"
    robot.free.set()
    desk.close()


def test_messages_of_one_press_are_one_stop_and_another_press_is_another(served, page):
    desk = served.console.desks["fake"]
    assert page.command("stop", press="p1")["type"] == "done"
    assert page.command("release")["type"] == "done"
    # The same press once more, late: somebody has released the robot since, and it stays released.
    assert "stands" in page.command("stop", press="p1")["detail"]
    assert json.loads(get(served, "/api/stop?press=p1&robot=fake", VIEWER, "POST")[1])["stopped"]
    assert not served.robot.is_stopped
    assert json.loads(get(served, "/api/stop?press=p2", VIEWER, "POST")[1])["stopped"]
    assert served.robot.is_stopped
    page.command("release")
    # What is no name is no press: it stops whatever was before.
    for press in ("", 7, None, "x" * 65):
        assert page.command("stop", press=press)["type"] == "done"
        assert served.robot.is_stopped
        page.command("release")
    assert len(desk._presses) == 2


def test_a_press_that_failed_is_carried_out_again_and_few_are_remembered():
    robot = SlowRobot()
    desk, page = CommandDesk(robot, WallClock()), Page(1, "somebody", True)
    robot.fault = RobotError("no standstill was confirmed")
    with pytest.raises(RobotError):
        desk.stop(page, "p").result(1.0)
    robot.fault = None
    assert desk.stop(page, "p").result(1.0) == "stopped"
    assert robot.stops == 2
    # While it is carried out, another message of it waits with it; if it hangs, it is carried out once more.
    robot.stops_end.clear()
    first = desk.stop(page, "q")
    time.sleep(2 * STOP_AGAIN_S)
    assert desk.stop(page, "q") is first
    time.sleep(HANGS_S)
    second = desk.stop(page, "q")
    assert second is not first
    robot.stops_end.set()
    assert [first.result(1.0), second.result(1.0)] == ["stopped", "stopped"]
    assert robot.stops == 4
    for number in range(2 * MAX_PRESSES):
        desk.stop(page, f"p{number}").result(1.0)
    assert len(desk._presses) == MAX_PRESSES
    desk.close()


@pytest.mark.parametrize("way", ["web socket", "request"])
def test_a_stop_of_all_stops_each_and_waits_for_none_that_hangs_or_fails(way):
    second, third = SlowRobot("second"), SlowRobot("third")
    third.fault = RobotError("no standstill was confirmed")
    with rig(["done()"], others=(second, third)) as served:
        viewer = Client(served.port, VIEWER)
        robots = json.loads(get(served, "/api/robots", VIEWER)[1])["robots"]
        assert [each["name"] for each in robots] == ["fake", "second", "third"]
        second.stops_end.clear()
        told = []

        def stop():
            if way == "request":
                told.append(json.loads(get(served, "/api/stop", VIEWER, "POST")[1]))
            else:
                told.append(viewer.command("stop_all"))

        asker = threading.Thread(target=stop)
        asker.start()
        # That of the second robot hangs: those of the others do not wait for it.
        wait_for(lambda: served.robot.is_stopped and second.stops and third.stops, 2.0)
        second.stops_end.set()
        asker.join(5)
        detail = told[0]["detail"]
        assert detail.startswith("fake: stands after")
        assert detail.endswith("; second: stopped; third: no standstill was confirmed")
        assert told[0].get("stopped", told[0].get("type")) in {False, "refused"}
        third.fault = None
        time.sleep(STOP_AGAIN_S)  # a stop within this time is the one before
        assert viewer.command("stop_all")["type"] == "done"
        # Each robot's own pages are told, too, who has stopped it.
        other = Client(served.port, robot="third")
        log = other.until(lambda event: event["type"] == "commands")["commands"]
        assert log[-1]["command"] == "stop"
        assert log[-1]["who"].startswith("viewer@")
        viewer.close()
        other.close()


def test_beyond_loopback_only_with_tokens_and_the_link_is_one_that_others_reach(tmp_path, monkeypatch):
    assert console_settings.shown_host(bind_address("127.0.0.1:1")) == "127.0.0.1"
    assert console_settings.shown_host(bind_address("[::1]:1")) == "[::1]"
    assert console_settings.shown_host(bind_address("0.0.0.0:1")) != "0.0.0.0"
    file = tmp_path / "tokens"
    file.write_text(f"lab {COMMANDER} command\n")
    with (
        pytest.raises(ConfigError, match="chmod 600"),
        console_settings.serving([], console_settings.ConsoleSettings(bind="127.0.0.1:0", tokens=file)),
    ):
        pass
    file.chmod(0o600)
    with console_settings.serving(
        [], console_settings.ConsoleSettings(bind="127.0.0.1:0", tokens=file)
    ) as links:
        assert links.command is None
        assert COMMANDER not in "".join(links.lines)
    with console_settings.serving([], console_settings.ConsoleSettings(bind="127.0.0.1:0")) as one:
        assert one.command.partition("token=")[2] != one.view.partition("token=")[2]
