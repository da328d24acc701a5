"""`vsd serve` as a command: what it says at its start, how a signal ends it, settings that do not hold."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from vlm_spec_decode.cli.main import main, vsd

pytestmark = pytest.mark.net


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_it_says_where_it_serves_and_ends_at_a_signal(number: signal.Signals) -> None:
    command = [
        sys.executable,
        "-m",
        "vlm_spec_decode.cli",
        "serve",
        "--local",
        "--bind",
        "127.0.0.1:0",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        ready = json.loads(running.stdout.readline())
        assert (ready["event"], ready["models"]) == ("ready", ["target"])
        assert httpx.get(f"{ready['url']}/health").json() == {"status": "ok"}
        running.send_signal(number)
        assert running.wait(60) == 0
        assert json.loads(running.stdout.read()) == {"event": "ended"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "one of both"),
        (["tcp://127.0.0.1:5", "--local"], "one of both"),
        (["--local", "--bind", "0.0.0.0:0"], "only with a key"),
        (["--local", "--bind", "nowhere"], "HOST:PORT"),
        (["--local", "--tls-cert", "a"], "name both"),
        (["--local", "--allow-url-host", "http://a"], "--allow-url-host"),
        (["--local", "--fallback", "draft"], "--fallback draft"),
        (["--local", "--api-keys", "none"], "no file of keys"),
        (["--local", "--strategy", "luck"], "luck"),
        (["tcp://10.0.0.1:5"], "CURVE keys"),
    ],
)
def test_settings_that_do_not_hold_are_named_before_a_model_is_loaded(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_help_needs_no_http_library() -> None:
    found = CliRunner().invoke(vsd, ["serve", "--help"])
    assert found.exit_code == 0
    assert "--fallback" in found.output
