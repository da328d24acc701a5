"""The command line: what it offers, how it fails, what it prints. Commands that run are in test_docs."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from test.models import checkpoints
from vlm_spec_decode import __version__
from vlm_spec_decode.cli import main as cli

COMMANDS = ("ask", "bench", "cloud", "demo", "doctor", "keys", "say", "sim", "stop", "train")


def vsd(*arguments, timeout=60):
    command = [sys.executable, "-m", "vlm_spec_decode.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def test_version_and_help(capsys):
    assert cli.main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert cli.main(["--help"]) == 0
    listed = re.findall(r"^  ([a-z]+) ", capsys.readouterr().out, re.MULTILINE)
    assert set(COMMANDS) <= set(listed)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_is_listed_has_help_and_takes_json(name, capsys):
    assert cli.main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert "Usage: vsd " + name in said
    assert name == "train" or "--json" in said


def test_help_imports_no_heavy_library():
    code = (
        "import sys; from vlm_spec_decode.cli.main import main; main(['demo', '--help']); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "mujoco", "zmq", "rclpy"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "code", "name"),
    [
        (["ask"], 2, "UsageError"),
        (["nothing"], 2, "UsageError"),
        (["cloud"], 2, "ConfigError"),
        (["cloud", "--insecure", "--bind", "tcp://0.0.0.0:5557"], 2, "ConfigError"),
        (
            ["cloud", "--insecure", "--bind", "tcp://127.0.0.1:9", "--model", "no/such/folder"],
            2,
            "ModelNotFound",
        ),
        (["ask", "--instruction", "   "], 2, "InstructionError"),
        (["ask", "--instruction", "a" * 10_000], 2, "InstructionError"),
        (["ask", "--instruction", "go", "--image", "/no/such.jpg"], 2, "ImageError"),
        (
            ["ask", "--instruction", "go", "--cloud", "tcp://127.0.0.1:9", "--strategy", "none"],
            2,
            "ConfigError",
        ),
        (["sim", "--fault", "meteor"], 2, "ConfigError"),
        (["sim", "--scene", "/no/such.yaml"], 2, "SceneError"),
        (["sim", "--headless", "--actions", "forward(x)"], 1, "ActionParseError"),
        (["sim", "--headless", "--fault", "low_battery"], 2, "ConfigError"),
        (["sim", "--headless", "--firmware", "classic"], 2, "ConfigError"),
        (["demo", "--strategy", "none"], 2, "ConfigError"),
        (["demo", "--instruction", ""], 2, "InstructionError"),
        (["demo", "--scene", "/no/such.yaml"], 2, "SceneError"),
    ],
)
def test_errors_are_one_line_with_a_code(arguments, code, name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*arguments, "--json"]) == code
    said = capsys.readouterr()
    document = json.loads(said.out.splitlines()[-1])
    assert (document["error"], document["exit_code"]) == (name, code)
    assert "Traceback" not in said.err
    if name != "UsageError":
        assert len(said.err.strip().splitlines()) == 1


OF_A_MODEL = {
    "ask --draft": ["ask", "--instruction", "go", "--scene-text", "a chair", "--draft"],
    "ask --target": ["ask", "--instruction", "go", "--scene-text", "a chair", "--target"],
    "edge": ["edge", "--instruction", "go", "--cloud", "tcp://127.0.0.1:1", "--draft"],
    "cloud --model": ["cloud", "--insecure", "--http", "off", "--model"],
    "cloud --draft": ["cloud", "--insecure", "--http", "off", "--draft"],
    "check --model": ["cloud", "--insecure", "--check-config", "--model"],
    "check --draft": ["cloud", "--insecure", "--check-config", "--draft"],
    "doctor": ["doctor", "--draft"],
}


@pytest.mark.parametrize("command", OF_A_MODEL)
@pytest.mark.parametrize("model", ["none", "empty", "shipped:none"])
def test_a_model_that_is_not_there_ends_every_command_alike(command, model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    where = model if ":" in model else str(tmp_path / model)
    assert cli.main([*OF_A_MODEL[command], where, "--json"]) == 2
    captured = capsys.readouterr()
    found = json.loads(captured.out.splitlines()[-1])
    assert (found["error"], found["exit_code"]) == ("ModelNotFound", 2)
    assert model.removeprefix("shipped:") in found["message"]
    assert len(captured.err.splitlines()) == 1


def test_a_draft_of_another_vocabulary_does_not_pass_the_check_of_the_settings(tmp_path, capsys):
    other = checkpoints.llama(tmp_path / "other")
    draft = ["cloud", "--insecure", "--check-config", "--draft"]
    assert cli.main([*draft, "shipped"]) == 0
    assert "the settings hold" in capsys.readouterr().out
    assert cli.main([*draft, str(other)]) == 1
    assert "vsd: VocabularyMismatch: draft other (" in capsys.readouterr().err


def test_a_broken_jpeg_is_named(tmp_path, capsys):
    image = tmp_path / "frame.jpg"
    image.write_bytes(b"\xff\xd8\xff\xe0 nothing of an image")
    assert cli.main(["ask", "--instruction", "go", "--image", str(image)]) == 2
    assert "frame.jpg" in capsys.readouterr().err


def test_a_cloud_that_is_not_there_is_named(tmp_path, capsys, free_tcp_port):
    address = f"tcp://127.0.0.1:{free_tcp_port}"
    began_s = time.monotonic()
    assert cli.main(["ask", "--instruction", "go", "--cloud", address, "--json"]) == 3
    assert time.monotonic() - began_s < 4.0, "2 s of patience, before any model is loaded"
    assert cli.main(["ask", "--instruction", "go", "--cloud", address, "--patience", "0"]) == 3
    assert "refused" in capsys.readouterr().err.splitlines()[-1]
    assert cli.main(["ask", "--instruction", "go", "--cloud", address, "--patience", "0", "--json"]) == 3
    said = capsys.readouterr()
    assert json.loads(said.out)["error"] == "CloudUnreachable"
    assert address in said.err


def ask(found, monkeypatch, *more):
    monkeypatch.setattr("vlm_spec_decode.edge.ask.run", lambda *_: found)
    return cli.main(["ask", "--instruction", "gargle", "--image", "x.jpg", *more])


@pytest.mark.parametrize(
    ("answer", "actions", "code"),
    [
        ("I see a chair ahead. forward(1)", ["forward(1)"], 0),
        ("I see a chair ahead. done()", ["done()"], 0),
        ("lorem ipsum", [], 1),
        ("i see a box . i do not know what that means . done ( )", ["done()"], 1),
    ],
)
def test_an_answer_that_says_nothing_to_do_is_a_failed_task(monkeypatch, capsys, answer, actions, code):
    found = {"answer": answer, "actions": actions, "token_ids": [1], "accepted": 0, "drafted": 0}
    found |= {"target_passes": 1}
    assert ask(found, monkeypatch, "--json") == code
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["answer"] == answer
    assert document.get("exit_code", 0) == code
    assert ("ActionParseError" in said.err) == bool(code)
    assert ask(found, monkeypatch) == code


def test_keys_are_made_once(tmp_path, capsys):
    folder = tmp_path / "keys"
    assert cli.main(["keys", str(folder), "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert str(folder / "edge.key_secret") in files
    assert (folder / "cloud.key_secret").stat().st_mode & 0o077 == 0
    assert cli.main(["keys", str(folder)]) == 2
    assert cli.main(["cloud", "--keys", str(folder), "--check-config", "--json"]) == 0


def test_doctor_passes_where_the_tests_run(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"]
    assert {"python", "rclpy", "rendering", "models"} <= {check["name"] for check in document["checks"]}


def test_a_taken_port_is_named(tmp_path, free_tcp_port):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_tcp_port))
        taken.listen()
        done = vsd("cloud", "--insecure", "--bind", f"tcp://127.0.0.1:{free_tcp_port}")
    assert done.returncode == 3
    assert str(free_tcp_port) in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_cloud_ends_at_a_signal(number):
    command = [
        sys.executable,
        "-m",
        "vlm_spec_decode.cli.main",
        "cloud",
        "--insecure",
        "--bind",
        "tcp://127.0.0.1:*",
    ]
    with subprocess.Popen(
        [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as cloud:
        try:
            assert json.loads(cloud.stdout.readline())["event"] == "ready"
            os.kill(cloud.pid, number)
            rest, trouble = cloud.communicate(timeout=30)
        finally:
            cloud.kill()
    assert json.loads(rest)["event"] == "ended"
    assert (cloud.returncode, trouble) == (0, "")


def test_headless_actions_run_faster_than_time_and_leave_a_picture(tmp_path, capsys):
    view, truth = tmp_path / "room.png", tmp_path / "truth.json"
    files = ["--view", str(view), "--ground-truth", str(truth)]
    began = time.process_time()
    assert cli.main(["sim", "--headless", "--actions", "turn(90) turn(-90) wait(10)", *files, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["executed"] == ["turn(90)", "turn(-90)", "wait(10)"]
    assert document["time_s"] > 14
    assert time.process_time() - began < document["time_s"]
    assert view.stat().st_size > 1000
    assert len(json.loads(truth.read_text())["path"]) > 10


def test_nobody_to_talk_to_is_named(capsys, monkeypatch):
    monkeypatch.setattr("vlm_spec_decode.cli.console.FIND_S", 0.5)
    monkeypatch.setenv("ROS_DOMAIN_ID", str(58))
    assert cli.main(["say", "walk to the chair", "--json"]) == 4
    assert "no vlm_node listens on ROS domain 58" in capsys.readouterr().err
    assert cli.main(["stop", "--json"]) == 4
    assert "/e_stop" in capsys.readouterr().err


def test_a_fault_that_nobody_named_is_one_line(capsys, monkeypatch):
    def broken(*_):
        raise KeyError("nobody\nknew")

    monkeypatch.setattr("vlm_spec_decode.transport.keys.generate", broken)
    assert cli.main(["keys", "folder", "--json"]) == 1
    said = capsys.readouterr()
    document = json.loads(said.out.splitlines()[-1])
    assert (document["error"], document["exit_code"]) == ("InternalError", 1)
    assert "traceback in " in document["message"]
    assert len(said.err.strip().splitlines()) == 1


def test_a_file_that_cannot_be_written_ends_with_a_json_line_too(capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vlm_spec_decode.transport.keys.generate", full)
    assert cli.main(["keys", "folder", "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["error"] == "OSError"


@pytest.mark.ros
@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        ({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}, 4, "rmw_cyclonedds_cpp is not installed; using"),
        ({"HOME": "/proc/x", "ROS_LOG_DIR": "/proc/x", "TMPDIR": "/proc/x"}, 4, "/proc/x cannot be written"),
        ({"ROS_DOMAIN_ID": "233"}, 2, "0 to 232"),
        ({"ROS_SECURITY_ENABLE": "true", "ROS_SECURITY_STRATEGY": "Enforce"}, 2, "ROS_SECURITY_KEYSTORE"),
    ],
)
def test_a_stop_runs_under_whatever_the_shell_holds(shell, code, said):
    """That it arrives as well is measured by benchmarks/hardening_environment.py, with many more shells."""
    program = (
        "import sys; from vlm_spec_decode.cli import console; from vlm_spec_decode.cli.main import main; "
        "console.FIND_S = 0.3; sys.exit(main(['stop', '--json']))"
    )
    environ = os.environ | {"ROS_DOMAIN_ID": "58"} | shell
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["exit_code"] == code
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["ask", "--instruction"], ["demo", "--instruction"], ["say"]])
@pytest.mark.parametrize("text", ["walk to the ch\udcffair", "walk \ufffd"])
def test_an_instruction_that_is_no_text_is_named(command, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command, text, "--json"]) == 2
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["error"] == "InstructionError"


CRASHING_STOP = """
import os, pathlib, signal, sys
from vlm_spec_decode.ros import estop_client
tries, CRASHES = pathlib.Path(sys.argv.pop(1)), int(sys.argv.pop(1))

def e_stop(domain, namespace, engaged, timeout_s, tell, answer):
    tries.write_text(tries.read_text() + "x")
    if len(tries.read_text()) <= CRASHES:
        os.kill(os.getpid(), signal.SIGSEGV)
    answer(True, "engaged")
    return True

estop_client.e_stop = e_stop
from vlm_spec_decode.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize(("crashes", "code"), [(0, 0), (1, 0), (2, 0), (9, 128 + 11)])
def test_a_crash_of_the_middleware_does_not_keep_the_stop_from_the_robot(tmp_path, crashes, code):
    tries = tmp_path / "tries"
    tries.write_text("")
    command = [sys.executable, "-c", CRASHING_STOP, str(tries), str(crashes), "stop", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert len(tries.read_text()) == min(crashes + 1, 3)
    assert done.stderr.count("SIGSEGV") == min(crashes, 3)
    if code == 0:
        assert json.loads(done.stdout) == {"ok": True, "message": "engaged"}
    else:
        assert "remote control" in done.stderr
