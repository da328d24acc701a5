"""What a command imports before it is needed: nothing. `vsd --help` is quick, and so is every other help."""

import json
import resource
import signal
import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "transformers",
    "rclpy",
    "mujoco",
    "zmq",
    "numpy",
    "PIL",
    "rosbags",
    "cyclonedds",
    "rich",
    "yaml",
)
INTERRUPTED = json.dumps({"error": "Interrupted", "message": "interrupted", "exit_code": 130}) + "\n"
EACH_HELP = """
import contextlib, io, json, sys
import click
from vlm_spec_decode.cli import main as cli
heavy = set(json.loads(sys.argv[1]))
found, seen = {}, 0

def walk(command, names):
    global seen
    seen += 1
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = cli.main([*names, "--help"])
    assert code == 0 and "Usage:" in said.getvalue(), names
    new = heavy & {name.partition(".")[0] for name in sys.modules}
    if new:
        found[" ".join(names) or "vsd"] = sorted(new)
        heavy.difference_update(new)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            walk(command.get_command(context, name), [*names, name])

walk(cli.vsd, [])
print(json.dumps({"found": found, "seen": seen}))
"""


def test_no_help_of_any_command_imports_anything_heavy():
    command = [sys.executable, "-c", EACH_HELP, json.dumps(HEAVY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["found"] == {}
    assert document["seen"] > 20


def test_the_package_itself_imports_none_of_its_parts():
    code = (
        "import sys; before = set(sys.modules); import vlm_spec_decode; print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = set(done.stdout.split())
    assert [name for name in new if name.startswith("vlm_spec_decode")] == ["vlm_spec_decode"]
    assert not new & set(HEAVY)


def cpu_s(*arguments):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_costs_little_more_than_an_interpreter():
    bare = min(cpu_s("-c", "pass") for _ in range(3))
    helped = min(cpu_s("-m", "vlm_spec_decode.cli", "--help") for _ in range(3))
    assert helped - bare <= 0.3


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "--instruction", "go", "--image", "/no/such.jpg"],
        ["ask", "--instruction", "   "],
        ["ask", "--instruction", "go", "--image", __file__],
        ["ask", "--instruction", "go", "--strategy", "none"],
        ["ask", "--instruction", "go", "--keys", "/no/such", "--cloud", "tcp://127.0.0.1:9"],
        ["ask", "--instruction", "go", "--cloud", "http://there"],
        ["ask", "--instruction", "go"],
    ],
)
def test_what_needs_no_model_is_told_before_one_is_loaded(arguments):
    code = (
        "import sys; from vlm_spec_decode.cli.main import main; code = main(sys.argv[1:]);"
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False"], done.stderr


def test_the_defaults_of_the_commands_are_those_of_the_registry():
    from vlm_spec_decode.bags.cli import replay
    from vlm_spec_decode.cli.service import ask
    from vlm_spec_decode.strategies.registry import DEFAULT

    assert {p.name: p.default for p in replay.params}["strategies"] == (DEFAULT,)
    assert {p.name: p.default for p in ask.params}["strategy"] == DEFAULT


SLOW_IMPORT = """
import importlib.abc, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "click":
            print("importing", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
from vlm_spec_decode.cli.__main__ import run
sys.exit(run())
"""
SLOW_END = """
import signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from vlm_spec_decode.cli import main
from vlm_spec_decode.cli.__main__ import run
def ended():
    threading.Thread(target=time.sleep, args=(60,)).start()
    print("said")
    return 7
main.main = ended
code = run()
print("over", file=sys.stderr, flush=True)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("code", "arguments", "seen", "wanted"),
    [
        (SLOW_IMPORT, ["ask"], "stdout", (130, "", "\nvsd: interrupted\n")),
        (SLOW_IMPORT, ["ask", "--json"], "stdout", (130, INTERRUPTED, "\nvsd: interrupted\n")),
        (SLOW_END, [], "stderr", (7, "said\n", "")),
    ],
    ids=["before", "before, as JSON", "after"],
)
def test_ctrl_c_before_and_after_a_command_is_told_or_changes_nothing(code, arguments, seen, wanted):
    """Before it: 130 and one line, no traceback and no death by signal. After it: the command's own code."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert getattr(process, seen).readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out, err) == wanted
