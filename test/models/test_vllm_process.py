"""The process that runs vLLM, as far as it needs no vLLM: where it is looked for, what is refused."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vlm_spec_decode.core.errors import EngineStopped, ModelError
from vlm_spec_decode.models.engines import vllm_messages as wire
from vlm_spec_decode.models.engines import vllm_process
from vlm_spec_decode.models.engines.base import LoadOptions
from vlm_spec_decode.models.engines.vllm_process import VllmProcess, check_version, find_python
from vlm_spec_decode.models.loader import load_model
from vlm_spec_decode.models.places import shipped
from vlm_spec_decode.models.spec import parse_spec

LOAD = wire.LoadCheckpoint(
    folder=str(shipped("target")),
    dtype="float32",
    device="cpu",
    vocab_size=2000,
    sees=True,
    tensor_parallel=1,
    kv_bytes=1 << 20,
    answers=4,
)


STAND_IN = f"""
import sys
from multiprocessing.connection import Connection
if "importlib" in sys.argv[2]:
    sys.exit(print("0.32.0"))
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from vlm_spec_decode.models.engines import vllm_messages as wire
connection = Connection(int(sys.argv[3]))
connection.recv_bytes()
connection.send_bytes(wire.encode(wire.Ready(1)))
while True:
    asked = wire.to_engine.decode(connection.recv_bytes())
    if isinstance(asked, wire.Pass):
        said = tuple(wire.Said(answer=rows.answer, tokens=(7,)) for rows in asked.rows)
        connection.send_bytes(wire.encode(wire.Passed(said)))
"""


def interpreter(folder: Path, text: str) -> Path:
    """Write a program that stands where an interpreter is expected."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\n{text}\n")
    path.chmod(0o755)
    return path


def test_an_environment_is_found_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = interpreter(tmp_path, "")
    monkeypatch.setenv(vllm_process.PYTHON_VARIABLE, str(named))
    assert find_python() == named
    monkeypatch.setenv(vllm_process.PYTHON_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ModelError, match="which is no file"):
        find_python()


def test_without_an_environment_the_way_to_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(vllm_process.PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr(vllm_process, "PYTHON", Path("nowhere") / "python")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="make setup-vllm"):
        find_python()
    with pytest.raises(ModelError, match=r"cannot load target: .*make setup-vllm"):
        load_model("shipped:target,engine=vllm")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("print('0.31.7')", "has vLLM 0.31.7; this version of the package works with 0.32.x"),
        ("raise SystemExit(1)", "has no vLLM: make setup-vllm"),
    ],
)
def test_another_version_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        check_version(interpreter(tmp_path, text))
    assert check_version(interpreter(tmp_path, "print('0.32.1')")) == "0.32.1"


def test_a_process_that_ends_while_it_loads_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import sys\nprint('0.32.0') if 'importlib' in sys.argv[2] else sys.exit(7)"
    monkeypatch.setenv(vllm_process.PYTHON_VARIABLE, str(interpreter(tmp_path, text)))
    process = VllmProcess(LOAD)
    with pytest.raises(ModelError, match="ended with code 7 while it loaded"):
        process.start()
    assert not process.is_running
    process.close()
    process.close()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VllmProcess]:
    """A process that loads nothing and says 7 to everything."""
    monkeypatch.setenv(vllm_process.PYTHON_VARIABLE, str(interpreter(tmp_path, STAND_IN)))
    monkeypatch.setattr(vllm_process, "FIRST_PAUSE_S", 0.05)
    process = VllmProcess(LOAD)
    process.start()
    yield process
    process.close()


def eventually(holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until_s
        time.sleep(0.02)


def test_a_process_that_ends_while_nobody_asks_is_noticed_and_started_again(served: VllmProcess) -> None:
    assert served.run([wire.Rows(answer=3)], 1)[0].tokens == (7,)
    pid = served.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: served.pid != pid and served.is_running)
    assert served.life == 2
    with pytest.raises(EngineStopped, match="started again"):
        served.run([wire.Rows(answer=3)], 1)
    assert served.run([wire.Rows(answer=3)], 2)[0].tokens == (7,)
    served.tell(wire.Close(3), 1)
    served.tell(wire.Close(3), 2)


def test_who_waits_is_told_how_the_process_ended(
    served: VllmProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = served.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
    timer.start()
    with pytest.raises(EngineStopped, match="signal 9"):
        served.run([wire.Rows(answer=3)], 1)
    eventually(lambda: served.life == 2)
    monkeypatch.setattr(vllm_process, "HANGS_S", 0.3)
    pid = served.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EngineStopped, match="said nothing for"):
        served.run([wire.Rows(answer=3)], 2)


def test_closing_ends_it_for_good(served: VllmProcess) -> None:
    pid, folder = served.pid, Path(served._package.name)
    assert pid is not None
    assert folder.is_dir()
    served.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not folder.exists()
    time.sleep(0.3)
    assert not served.is_running
    with pytest.raises(EngineStopped):
        served.check()
    with pytest.raises(ModelError, match="has been closed"):
        served.start()


def test_what_goes_over_the_pipe_comes_out_as_it_went_in() -> None:
    rows = wire.Rows(answer=3, prompt=(1, 2), jpeg=b"j", tokens=(4,), legal=(None, b"\x01"))
    for message in (LOAD, wire.Pass((rows,)), wire.Forget(3), wire.Close(3)):
        assert wire.to_engine.decode(wire.encode(message)) == message
    said = wire.Said(answer=3, tokens=(4, 5))
    for answer in (wire.Progress(0.5), wire.Refusal("no"), wire.Passed((said,))):
        assert wire.from_engine.decode(wire.encode(answer)) == answer


def test_its_options_are_whole_numbers() -> None:
    options = parse_spec("a/b,engine=vllm,tensor_parallel=4,kv_mib=8192", LoadOptions()).options
    assert (options.tensor_parallel, options.kv_mib) == (4, 8192)
    with pytest.raises(ModelError, match="no number from 1 on"):
        parse_spec("a/b,tensor_parallel=0", LoadOptions())
    with pytest.raises(ModelError, match="tensor_parallel is vllm's"):
        load_model("shipped:draft,tensor_parallel=2")
