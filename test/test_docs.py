"""The documents are true: commands run, the tree is the tree, tables are what was measured."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import click
import pytest
import yaml

from test.launch_files import declared_arguments
from test.terminal import Terminal
from vlm_spec_decode import __version__
from vlm_spec_decode.actions.limits import SafetyLimits
from vlm_spec_decode.cli.main import vsd
from vlm_spec_decode.core.config import settings_of
from vlm_spec_decode.ros.parameter_docs import PARAMETERS
from vlm_spec_decode.sim import scene as scene_file
from vlm_spec_decode.sim.objects import COLOURS, KINDS, footprint_radius_m
from vlm_spec_decode.sim.scene import FLOORS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

TERMINALS = (ROOT / "docs" / "four_terminals.md").read_text(encoding="utf-8")
SCENES = (ROOT / "docs" / "scenes.md").read_text(encoding="utf-8")
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]


def blocks(page: str, kind: str = "sh") -> list[str]:
    """Return a page's code blocks of one kind; those of `sh` are executed."""
    return re.findall(rf"^```{kind}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def page(name: str) -> str:
    """Return a page of docs/."""
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


COMMANDS = page("commands")
BLOCKS = [*blocks(COMMANDS), *blocks(page("measured"))]


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
    (block,) = blocks(README)
    first = block.splitlines()
    assert first[0].startswith("git clone ")
    assert first[1:] == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    assert "vlm_spec_decode.cli demo" in makefile
    assert "bash .ci/tests" in makefile
    assert "-m pytest" in (ROOT / ".ci" / "tests").read_text()


@pytest.mark.slow
@pytest.mark.dds
@pytest.mark.ros
@pytest.mark.net
@pytest.mark.timeout(300)
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n", 1)[0])
def test_commands_run(block, user, tmp_path):
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


def test_the_page_of_commands_lists_every_one_and_no_other():
    listed = re.findall(r"^\| `vsd ([\w-]+)`", COMMANDS, re.MULTILINE)
    known = {
        name: vsd.get_command(click.Context(vsd), name) for name in vsd.list_commands(click.Context(vsd))
    }
    assert sorted(listed) == [name for name, command in known.items() if not command.hidden]


def test_options_that_the_page_names_exist():
    for name, rest in re.findall(r"^\| `vsd (\w+)` \| (.*) \|$", COMMANDS, re.MULTILINE):
        command = vsd.get_command(click.Context(vsd), name)
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known


@pytest.mark.parametrize("name", PAGES)
def test_launch_arguments_that_a_page_names_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for file, rest in re.findall(r"ros2 launch vlm_spec_decode (\S+\.py)([^`\n]*)", text):
        assert set(re.findall(r"(\w+):=", rest)) <= set(declared_arguments(ROOT / "launch" / file))


def heading_id(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_are_there(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, part = target.partition("#")
        if target.startswith("https://"):
            continue
        linked = (ROOT / name).parent / path if path else ROOT / name
        assert linked.exists(), target
        if part:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert part in map(heading_id, headings), target


def test_the_readme_leads_to_every_page_that_a_user_opens():
    for name in ("four_terminals", "scenes", "safety", "real_robot", "parameters", "bags", "operations"):
        assert f"](docs/{name}.md" in README
    for name in ("CITATION.cff", "CONTRIBUTING.md"):
        assert f"]({name}" in README


def test_the_index_lists_every_page_once():
    linked = re.findall(r"^- \[[^]]+\]\(([\w.]+)\)", page("README"), re.MULTILINE)
    assert sorted(linked) == sorted({path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"})


@pytest.mark.slow
@pytest.mark.dds
@pytest.mark.ros
@pytest.mark.net
@pytest.mark.timeout(300)
def test_four_terminals_do_what_their_page_says(tmp_path):
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    (tmp_path / "config").symlink_to(ROOT / "config")
    robot, cloud, nodes, user = (Terminal(tmp_path) for _ in range(4))
    commands = blocks(TERMINALS)
    assert len(commands) == 4
    try:
        for terminal, block in zip((robot, cloud, nodes), commands, strict=False):
            terminal.type(block)
        robot.wait_for("a Go2 on lo, domain 1")
        cloud.wait_for("serving target on tcp://127.0.0.1:5557 (CURVE)")
        for line in commands[3].splitlines():
            assert user.run(line) == 0, f"{line}\n{user.screen}\n{nodes.screen}"
        assert re.search(r"^done\b", user.screen, re.MULTILINE), user.screen
        assert "[vlm_node]: ready" in nodes.screen, nodes.screen
        for terminal in (nodes, cloud, robot):
            terminal.interrupt()
        assert nodes.run("wait") == 0
        assert "left: the robot stands" in nodes.screen
        for terminal in (robot, cloud, nodes, user):
            assert "Traceback" not in terminal.screen
    finally:
        for terminal in (user, nodes, cloud, robot):
            terminal.close()


def test_parameters_that_pages_name_exist():
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in PAGES]
    found = [row for text in texts for row in re.findall(r"(\w+_node) --ros-args ([^;`\n]*)", text)]
    assert len(re.findall(r"(\w+_node) --ros-args ([^;`\n]*)", TERMINALS)) == 3
    assert len(found) > 6
    for node, rest in found:
        known = {parameter.name for parameter in PARAMETERS[node]}
        assert set(re.findall(r"-p (\w+):=", rest)) <= known


RUN_HERE = ("bags", "bodies", "model_cards", "robustness", "safety")
"""Pages whose blocks of commands are run one by one in an empty folder."""


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", RUN_HERE)
def test_commands_of_pages_run(name, user):
    found = blocks(page(name))
    assert found
    for block in found:
        user(block)


def test_the_python_of_its_page_runs(user):
    question, several, mission = blocks(page("python"), "python")
    said = user(f"python - <<'END'\n{question}END\n")
    assert "Turn(angle_deg=-10.0)" in said
    assert "(Sit()" in said
    first, *_, last = user(f"python - <<'END'\n{several}END\n").splitlines()
    assert " | " in first
    assert "turn(" in last.split(" | ")[1], "both at once"
    said = user(f"python - <<'END'\n{mission}END\n")
    assert said.splitlines()[-1] == "done forward(1) done()"


def test_every_block_of_commands_is_run_by_one_of_these_tests():
    with_blocks = {name for name in PAGES if blocks((ROOT / name).read_text(encoding="utf-8"))}
    here = {"commands", "measured", "four_terminals", "scenes", *RUN_HERE}
    assert with_blocks == {"README.md", *(f"docs/{name}.md" for name in here)}


NOT_RUN = {
    r"make (setup|test)$": "is what runs these tests",
    r"(sudo|hf|pip|colcon) ": "changes the computer or downloads; test_deploy, test_packaging check parts",
    r"ros2 ": "needs a ROS 2 installation with its launch system; arguments and parameters are checked",
    r"\.venv/bin/python -m vlm_spec_decode\.ros\.parameter_docs": "is run by test/ros/test_reference.py",
    r"\.venv/bin/vsd options-page": "is run by test/core/test_config.py",
    r"vsd edge --interface ": "needs a Go2; test/mission/test_edge_command.py runs it on other robots",
    r"vsd serve ": "serves until it is stopped; test/serve serves",
    r"export ": "is for the programs that are named there",
    r"vsd record ": "needs nodes that run; test/ros records",
    r"vsd replay (--live )?(my_walk|walks)": "the reader's own recordings; test/bags replays others",
    r"vsd train ": "trains for hours; test/train runs every step in small",
    r"python benchmarks/models\.py --": "plays thousands of episodes with models that were just trained",
    r"vsd (demo|sim) --body physical$": "test/demo and test/sim run it; the page's headless one is run here",
    r"vsd (cloud|ask) .*(llava|vicuna)": "downloads 14 GB, and needs a GPU",
    r"python benchmarks/gpu\.py$": "needs a GPU; test/bench/test_gpu_benchmark.py runs all of it in small",
    r"vsd (cloud|front) --(config /etc|keys /etc)": "serves until stopped; test/net/test_fronts.py runs it",
    r"vsd keys keys$": "is run by the page of commands",
}
"""Commands of `console` blocks, and why nothing here runs them. Their options are checked all the same."""


def console_lines() -> list[tuple[str, str]]:
    found = []
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        for block in re.findall(r"^ *```(?:console|bash)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
            found += [(name, line.strip()) for line in block.splitlines() if line.strip()]
    return found


def test_a_command_that_is_not_run_has_its_reason():
    lines = [line for _, line in console_lines()]
    assert [line for line in lines if not any(re.match(why, line) for why in NOT_RUN)] == []
    assert [why for why in NOT_RUN if not any(re.match(why, line) for line in lines)] == [], "no longer there"


def vsd_lines() -> list[tuple[str, str]]:
    """Return what pages say after `vsd`, in blocks and in the middle of text, where it has arguments."""
    found = [
        (name, line) for name, line in console_lines() if re.match(r"(ros2 run vlm_spec_decode )?vsd ", line)
    ]
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        found += [
            (name, line) for block in blocks(text) for line in block.splitlines() if " vsd " in f" {line}"
        ]
        found += [(name, line) for line in re.findall(r"`(vsd \w[^`]* -[^`]*)`", text)]
    return sorted({(name, line[line.index("vsd ") + 4 :]) for name, line in found if "vsd " in line})


@pytest.mark.parametrize(("name", "line"), vsd_lines())
def test_a_command_on_a_page_has_options_that_exist(name, line):
    words = [word for word in shlex.split(line.replace("…", "")) if word not in ("&", ";")]
    command, used = vsd, 0
    while isinstance(command, click.Group) and used < len(words) and not words[used].startswith("-"):
        found = command.get_command(click.Context(command), words[used])
        if found is None:
            break
        command, used = found, used + 1
    assert used, f"{name}: {line!r} begins with no command"
    known = {"--help", *(option for parameter in command.params for option in parameter.opts)}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, f"{name}: {line}"


def test_the_scene_of_its_page_is_read_and_tried(user, tmp_path):
    (text,) = blocks(SCENES, "yaml")
    (tmp_path / "my_room.yaml").write_text(text)
    assert [item.name for item in scene_file.read(tmp_path / "my_room.yaml").objects] == [
        "red chair",
        "blue box",
    ]
    (command,) = blocks(SCENES)
    user(command)
    assert (tmp_path / "my_room.png").stat().st_size > 0


def test_the_tables_of_scenes_are_what_is_read():
    lines = re.findall(r"^\| `.+$", SCENES, re.MULTILINE)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    named = [key for row in rows for key in re.findall(r"`(.+?)`", row[0])]
    assert {re.split(r"[.\[]", key)[0] for key in named} == set(scene_file.TOP_KEYS)
    for group, keys in scene_file.PART_KEYS.items():
        assert {key.rpartition(".")[2] for key in named if key.startswith(group) and "." in key} == set(keys)
    needed = {key for row in rows if row[1] == "yes" for key in re.findall(r"`(.+?)`", row[0])}
    wanted = ("kind", "colour", "x_m", "y_m")
    assert needed == {"length_m", "width_m", *(f"objects[].{key}" for key in wanted)}
    ranges = {row[0]: row[2] for row in rows}
    assert ranges["`objects[].colour`"] == ", ".join(COLOURS)
    assert ranges["`floor`"] == ", ".join(FLOORS)
    assert f"| kind | {' | '.join(KINDS)} |" in SCENES
    assert f"m | {' | '.join(f'{footprint_radius_m(kind):.2f}' for kind in KINDS)} |" in SCENES


def test_every_limit_has_a_meaning():
    assert set(settings_of(SafetyLimits)) == {field.name for field in fields(SafetyLimits)}
    assert all(each.description for each in settings_of(SafetyLimits).values())


def test_how_to_cite_names_this_version_and_licence():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "type"} <= set(cited)
    assert (cited["version"], cited["license"]) == (__version__, "Apache-2.0")
    assert f"version = {{{__version__}}}" in README
    assert cited["title"].split(": ")[1] in README


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
    layers = re.search(r"^layers = \[(.*?)\]", contracts, re.MULTILINE | re.DOTALL).group(1)
    assert re.findall(r"^\| `(\w+)/` \|", ARCHITECTURE, re.MULTILINE) == re.findall(r"\w+", layers)


def test_measured_tables_are_what_was_measured():
    done = subprocess.run([sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "run: python benchmarks/tables.py"
