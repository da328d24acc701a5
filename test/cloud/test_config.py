"""Settings from files and the command line: what is wrong is named before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from vlm_spec_decode.cli import main as cli
from vlm_spec_decode.cloud.config import CloudConfig, check, checked, read_file
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.types import Language

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("binds: tcp://127.0.0.1:1", "unknown key 'binds'"),
        ("language: x", "unknown key 'language'"),
        ("threads: many", "threads: Expected `int`, got `str`"),
        ("insecure: 'yes'", "insecure: Expected `bool`"),
        ("- bind", "a mapping of settings"),
        ("bind: [", "no YAML"),
        ("1: 2", "unknown key '1'"),
        ("http: on", "http: Expected `str`"),
    ],
)
def test_what_a_file_may_not_say_is_named(text: str, named: str, tmp_path: Path) -> None:
    file = tmp_path / "cloud.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=named) as error:
        read_file(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"bind": "ipc:///tmp/x"}, "tcp://HOST:PORT"),
        ({"bind": "tcp://0.0.0.0:5557"}, "only loopback"),
        ({"insecure": False}, "no keys"),
        ({"http": "0.0.0.0:9464"}, "this machine only"),
        ({"log_format": "xml"}, "log_format 'xml'"),
        ({"profile": "warp"}, "no profile 'warp'"),
        ({"log_level": "loud"}, "log_level 'loud'"),
        ({"threads": 0}, "threads 0"),
        ({"replicas": -1}, "replicas -1"),
        ({"ray_address": "auto"}, "without replicas"),
        ({"replica_cpus": float("nan")}, "replica_cpus nan"),
        ({"replica_gpus": float("inf")}, "replica_gpus inf"),
        ({"dtype": "float31"}, "unknown dtype 'float31'"),
        ({"engine": "steam"}, "engine 'steam' is none of torch_loop"),
        ({"model": "someone/some-vlm,engine=steam"}, "unknown engine 'steam'"),
        ({"model": "someone/some-vlm,quantise=int8"}, "unknown model option 'quantise=int8'"),
        ({"draft": "/no/such/folder"}, "there is no folder /no/such/folder"),
    ],
)
def test_what_does_not_hold_is_named(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        check(CloudConfig(language=Language("g"), **({"insecure": True} | checked(settings, "test"))))


def test_the_command_line_wins_over_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cloud.yaml"
    file.write_text("bind: tcp://127.0.0.1:5001\ninsecure: true\nlog_format: json\ngrammar: false\n")
    assert cli.main(["cloud", "--config", str(file), "--check-config", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bind"] == "tcp://127.0.0.1:5001"
    arguments = ["cloud", "--config", str(file), "--bind", "tcp://127.0.0.1:5002", "--check-config", "--json"]
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["bind"] == "tcp://127.0.0.1:5002"
    file.write_text("insecure: true\nbnd: 1\n")
    assert cli.main(["cloud", "--config", str(file), "--check-config", "--json"]) == 2
    assert "unknown key 'bnd'" in json.loads(capsys.readouterr().out)["message"]


def test_a_bare_off_means_off_as_the_comment_in_the_file_has_it() -> None:
    assert checked(yaml.safe_load("http: off"), "test") == {"http": "off"}


def test_home_is_understood_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checked({"keys": "~/keys"}, "test")["keys"] == tmp_path / "keys"
