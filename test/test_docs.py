"""The documents are true: commands run, the tree is the tree, tables are what was measured."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from test.launch_files import declared_arguments
from vlm_spec_decode.cli import vsd

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def tracked() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout: what belongs to the project is not known")
    return [Path(line) for line in done.stdout.splitlines() if (ROOT / line).is_file()]


@pytest.fixture
def user(tmp_path):
    """A folder with the project's files in reach, and `vsd` and `python` as an installed user has them."""
    for name in ("docs", "benchmarks", "config"):
        (tmp_path / name).symlink_to(ROOT / name)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, arguments in (("vsd", "-m vlm_spec_decode.cli "), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        (programs / name).chmod(0o755)

    def run(block: str) -> str:
        end = "code=$?; kill $(jobs -p) 2>/dev/null || true; wait || true; exit $code"
        script = f"set -euo pipefail\ntrap '{end}' EXIT\n{block}"
        environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
        return done.stdout

    return run


def test_the_make_commands_exist_and_do_what_the_readme_says():
    first = BLOCKS[0].splitlines()
    assert first[0].startswith("git clone ")
    assert first[1:] == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    assert "vlm_spec_decode.cli demo" in makefile
    assert "-m pytest" in makefile


@pytest.mark.slow
@pytest.mark.dds
@pytest.mark.ros
@pytest.mark.net
@pytest.mark.timeout(300)
@pytest.mark.parametrize("block", BLOCKS[1:], ids=lambda block: block.split("\n", 1)[0])
def test_readme_commands_run(block, user, tmp_path):
    said = user(block)
    if "vsd demo" in block:
        run = json.loads((tmp_path / "out" / "demo" / "run.json").read_text())
        assert run["success"]
        assert run["same_tokens_as_autoregressive"]
        assert f'"scene_seed": {run["scene_seed"]}' in said
        for name in ("path.png", "run.gif", "bag/metadata.yaml", "frames/step_01.png"):
            assert (tmp_path / "out" / "demo" / name).stat().st_size > 0
    if "vsd ask" in block:
        assert "target passes" in said


def test_the_readme_lists_every_command_and_no_other():
    listed = re.findall(r"^\| `vsd (\w+)`", README, re.MULTILINE)
    assert sorted(listed) == vsd.list_commands(click.Context(vsd))


def test_options_that_the_readme_names_exist():
    for name, rest in re.findall(r"^\| `vsd (\w+)` \| (.*) \|$", README, re.MULTILINE):
        command = vsd.get_command(click.Context(vsd), name)
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known


def test_launch_arguments_that_the_readme_names_exist():
    for file, rest in re.findall(r"ros2 launch vlm_spec_decode (\S+\.py)(.*)", README):
        assert set(re.findall(r"(\w+):=", rest)) <= set(declared_arguments(ROOT / "launch" / file))


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md", "docs/protocol.md"])
def test_links_and_pictures_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or ((ROOT / page).parent / target).exists(), target


def test_the_tree_is_the_tree():
    block = re.search(r"^```\nvlm_spec_decode/\n(.*?)^```", ARCHITECTURE, re.MULTILINE | re.DOTALL).group(1)
    drawn, parents = set(), []
    for line in block.splitlines():
        depth = re.search(r"[^│├└─\s]", line).start() // 4
        parents[depth - 1 :] = [line[depth * 4 :].rstrip("/")]
        drawn.add("/".join(parents))
    files = tracked()
    real = {str(path.parts[0]) for path in files if len(path.parts) > 1}
    real |= {
        "/".join(path.parts[:2])
        for path in files
        if path.parts[0] == "vlm_spec_decode" and len(path.parts) > 2
    }
    real |= {"/".join(path.parts[:2]) for path in files if path.parts[0] == "config" and len(path.parts) > 2}
    assert drawn == real


def test_the_table_of_imports_is_what_the_linter_checks():
    contracts = (ROOT / "pyproject.toml").read_text()
    for folder in re.findall(r"^\| `(\w+)/` \|", ARCHITECTURE, re.MULTILINE):
        assert f'source_modules = ["vlm_spec_decode.{folder}"]' in contracts


def test_measured_tables_are_what_was_measured():
    done = subprocess.run([sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "run: python benchmarks/tables.py"
