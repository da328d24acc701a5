"""What is deployed: units, images and settings name only what there is."""

import re
import shlex
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import click
import pytest

from test.launch_files import declared_arguments
from vlm_spec_decode.cli.main import main, vsd
from vlm_spec_decode.cloud.config import CloudConfig, FrontConfig, read_file
from vlm_spec_decode.cloud.server import DRAIN_S

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
IMAGES = sorted((DEPLOY / "docker").glob("*.Dockerfile"))


def unit(path: Path) -> RawConfigParser:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read_string(path.read_text())
    return parser


def options_of(name: str) -> set[str]:
    command = vsd.get_command(click.Context(vsd), name)
    return {option for parameter in command.params for option in parameter.opts}


def instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE))
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_hold(path, tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not here")
    text = path.read_text().replace("User=vsd", "User=root").replace("Group=vsd", "Group=root")
    programs = re.findall(r"^Exec\w+=(/opt/\S+)", text, re.MULTILINE)
    assert programs
    (tmp_path / "program").write_text("#!/bin/sh\n")
    (tmp_path / "program").chmod(0o755)
    for program in programs:
        text = text.replace(program, str(tmp_path / "program"))
    (tmp_path / path.name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / path.name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    complaints = [line for line in done.stderr.splitlines() if path.name in line]
    assert (done.returncode, complaints) == (0, [])


def test_commands_of_units_and_images_exist():
    service = unit(DEPLOY / "systemd" / "vsd-cloud.service")["Service"]
    commands = [shlex.split(service[key])[1:] for key in ("ExecStart", "ExecStartPre")]
    steps = dict(instructions(DEPLOY / "docker" / "cloud.Dockerfile"))
    parts = [re.findall(r'"(.+?)"', steps[name]) for name in ("ENTRYPOINT", "CMD")]
    commands.append([*parts[0][1:], *parts[1]])
    for command, *arguments in commands:
        assert command == "cloud"
        assert {argument for argument in arguments if argument.startswith("--")} <= options_of("cloud")
    assert float(service["TimeoutStopSec"]) > DRAIN_S, "systemd waits until the answers under way have ended"
    front = unit(DEPLOY / "systemd" / "vsd-front@.service")["Service"]
    for key in ("ExecStart", "ExecStartPre"):
        command, *arguments = shlex.split(front[key])[1:]
        assert command == "front"
        assert {argument for argument in arguments if argument.startswith("--")} <= options_of("front")
    edge = unit(DEPLOY / "systemd" / "vsd-edge.service")["Service"]
    assert edge["ExecStart"] == re.findall(r'"(.+?)"', dict(instructions(IMAGES[1]))["ENTRYPOINT"])[0]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_images_copy_what_there_is(path):
    steps = instructions(path)
    assert steps[0][0] == "FROM"
    known = {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "USER", "ENV", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"}
    assert {name for name, _ in steps} <= known | {"ENTRYPOINT", "CMD"}
    copied = [source for name, rest in steps if name == "COPY" for source in rest.split()[:-1]]
    assert {"setup.py", "requirements.lock", "vlm_spec_decode"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
    setup = (ROOT / "setup.py").read_text()
    assert set(re.findall(r'tree\("(\w+)"\)', setup)) <= set(copied), "what setup.py installs is there"
    assert [rest for name, rest in steps if name == "USER"] == ["vsd"]


def test_the_script_of_the_edge_gives_what_the_launch_file_takes():
    script = (DEPLOY / "edge").read_text()
    assert set(re.findall(r"(\w+):=", script)) <= set(declared_arguments(ROOT / "launch" / "go2.launch.py"))
    used = set(re.findall(r"\$\{?(VSD_\w+)", script))
    assert used == set(re.findall(r"^(VSD_\w+)=", (DEPLOY / "edge.env").read_text(), re.MULTILINE))
    assert subprocess.run(["bash", "-n", str(DEPLOY / "edge")]).returncode == 0


@pytest.mark.parametrize(("name", "kind"), [("cloud", CloudConfig), ("front", FrontConfig)])
def test_the_settings_that_ship_hold(name, kind, tmp_path, capsys):
    settings = read_file(DEPLOY / f"{name}.yaml", kind)
    assert str(settings["keys"]) == "/etc/vsd/keys"
    assert main(["keys", str(tmp_path / "keys")]) == 0
    file = tmp_path / f"{name}.yaml"
    file.write_text((DEPLOY / f"{name}.yaml").read_text().replace("/etc/vsd/keys", str(tmp_path / "keys")))
    assert main([name, "--config", str(file), "--check-config"]) == 0
    assert "the settings hold" in capsys.readouterr().out
