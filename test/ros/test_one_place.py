"""A default stands in one place: where every setting is given another, every face of it follows.

A process of its own changes each default in the act of describing the setting, before anything else reads it,
as an edit of that one line would. Then it compares what nodes declare, pages, launch arguments and options
say, and what a dataclass holds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vlm_spec_decode.ros.parameter_docs import PARAMETERS

pytestmark = pytest.mark.ros

ROOT = Path(__file__).parents[2]

CHANGE = """
import sys
from pathlib import Path
from vlm_spec_decode.core import config

said = {}                      # description to the default that was given

def changed(default, description, low=None, high=None, one_of=()):
    if description in said and said[description] == default:
        return default         # the same setting, described again under another name
    if isinstance(default, bool):
        new = not default
    elif one_of and isinstance(default, str) and not callable(one_of):
        new = [default, *(name for name in one_of if name != default)][-1]
    elif isinstance(default, int):
        new = default + 1 if high is None or default < high else default - 1
    elif isinstance(default, float):
        new = default + 0.125 if high is None or default + 0.125 <= high else default - 0.125
    elif isinstance(default, str):
        new = default + "other"
    else:
        new = default
    said[description] = new
    return new

make, plain = config.Setting.__init__, config.setting

def init(self, name, default, description, low=None, high=None, one_of=(), *more, **others):
    new = changed(default, description, low, high, one_of)
    make(self, name, new, description, low, high, one_of, *more, **others)

def setting(default, description, low=None, high=None, *, one_of=(), live=False):
    new = changed(default, description, low, high, one_of)
    return plain(new, description, low, high, one_of=one_of, live=live)

config.Setting.__init__, config.setting = init, setting
"""

LOOK = """
import json
from vlm_spec_decode.cli import main as cli
from vlm_spec_decode.core.config import settings_of
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.mission.state import RunnerConfig
from vlm_spec_decode.ros import node_parameters, parameter_docs, params

class Node:
    def __init__(self): self.found = {}
    def has_parameter(self, name): return False
    def add_on_set_parameters_callback(self, callback): pass
    def declare_parameter(self, name, default, descriptor):
        self.found[name] = default
        return type("Value", (), {"value": default})

found = {"declared": {}, "table": {}}
for name in node_parameters.NODES:
    node = Node()
    params.Parameters(node, node_parameters.settings(name))
    found["declared"][name] = node.found
    text = parameter_docs.page().split(f"## {name}\\n")[1].split("| | topic")[0]
    cells = [row.split("|") for row in text.splitlines() if row.startswith("| `")]
    found["table"][name] = {row[1].strip(" `"): row[2].strip(" `") for row in cells}
found["launch"] = {name: node_parameters.Argument.of(each).default
                   for name, each in node_parameters.PARAMETERS.items()}
ask = cli.vsd.get_command(None, "ask")
found["options"] = {each.name: each.default for each in ask.params
                    if each.name in settings_of(EdgeSettings) and each.name != "keys"}
found["dataclass"] = {name: getattr(EdgeSettings(), name) for name in found["options"]}
found["runner"] = {name: getattr(RunnerConfig(), name) for name in settings_of(RunnerConfig)}
print(json.dumps(found))
"""


def faces(code: str) -> dict:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def changed() -> dict:
    return faces(CHANGE + LOOK)


def shown(default: object) -> str:
    return "empty" if default == "" else str(default)


def test_every_default_has_been_changed(changed) -> None:
    before = {(node, s.name): s.default for node, declared in PARAMETERS.items() for s in declared}
    after = {(node, n): d for node, declared in changed["declared"].items() for n, d in declared.items()}
    assert before.keys() == after.keys()
    assert [key for key in before if before[key] == after[key]] == []
    assert len(before) > 70


def test_the_page_and_the_launch_arguments_follow(changed) -> None:
    for node, declared in changed["declared"].items():
        assert changed["table"][node] == {name: shown(default) for name, default in declared.items()}
        for name, default in declared.items():
            text = str(default).lower() if isinstance(default, bool) else str(default)
            assert changed["launch"][name] == text, name


def test_the_options_and_the_dataclasses_follow(changed) -> None:
    declared = changed["declared"]["vlm_node"]
    assert len(changed["options"]) >= 10
    for name, default in changed["options"].items():
        assert changed["dataclass"][name] == default
        assert declared.get(name, default) == default, name
    runner = changed["runner"]
    assert (runner["max_steps"], runner["hold_s"]) == (declared["max_steps"], declared["hold_timeout_s"])
    assert (runner["fallback"], runner["frame_s"]) == (declared["fallback"], declared["frame_timeout_s"])


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.name)
def test_a_file_of_config_holds_only_what_differs(path) -> None:
    for name, values in yaml.safe_load(path.read_text()).items():
        declared = {each.name: each for each in PARAMETERS[name.removeprefix("/**/")]}
        assert values["ros__parameters"]
        for key, value in values["ros__parameters"].items():
            assert value != declared[key].default, f"{key} is the default"
