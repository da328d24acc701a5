"""A strategy from outside: registered by a call or an entry point, it is one like those that ship."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlm_spec_decode.bench.run import RunSetup, decode
from vlm_spec_decode.bench.synthetic import PairSpec, pair
from vlm_spec_decode.core.errors import ConfigError
from vlm_spec_decode.core.profiles import HardwareProfile, LinkProfile
from vlm_spec_decode.core.types import Observation, SamplingParams, Tokens
from vlm_spec_decode.decoding.policy import CloudPolicy
from vlm_spec_decode.decoding.tree import SpeculationTree
from vlm_spec_decode.strategies import registry
from vlm_spec_decode.strategies.base import Strategy
from vlm_spec_decode.strategies.registry import STRATEGIES, StrategyRegistry, register_strategy, strategy

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "05_new_strategy.py"
GO2, WIFI = HardwareProfile("go2", 72, 620, 620, 620, 62), LinkProfile("wifi", 60, 100, 100)
SHIPPED = tuple(STRATEGIES)
LOOK = """
import sys
from vlm_spec_decode.cli import main as cli
for command in ("ask", "demo", "replay", "load", "bench"):
    assert cli.main([command, "--help"]) == 0
assert "numpy" not in sys.modules and "my_strategy" not in sys.modules, "a name imports nothing"
from vlm_spec_decode.ros.node_parameters import STRATEGY
print("launch:", *STRATEGY.choices)
from vlm_spec_decode.ros.parameter_docs import PARAMETERS
(parameter,) = (p for p in PARAMETERS["vlm_node"] if p.name == "strategy")
print("node:", *parameter.choices)
from vlm_spec_decode.strategies.registry import strategy
print("rules:", *strategy("adaptive_length").rules)
try:
    strategy("broken_one")
except Exception as error:
    print("broken:", type(error).__name__, error)
"""


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this test registers is gone after it."""
    monkeypatch.setattr(STRATEGIES, "_sources", dict(STRATEGIES._found()))


def said(name: str, seed: int, temperature: float, draft_length: int) -> tuple[int, ...]:
    draft, target = pair(PairSpec(acceptance=0.7, seed=seed))
    params = SamplingParams(temperature=temperature, max_tokens=40, seed=seed)
    setup = RunSetup(strategy=name, hardware=GO2, link=WIFI, draft_length=draft_length)
    return decode(setup, draft, target, Observation(None, "go"), params).tokens


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("draft_length", [1, 4])
def test_the_example_says_what_the_target_says_alone(temperature: float, draft_length: int) -> None:
    found = runpy.run_path(str(EXAMPLE))["STRATEGY"]
    assert strategy("adaptive_length") is found
    assert tuple(STRATEGIES) == (*SHIPPED, "adaptive_length")
    for seed in range(4):
        plain = said("autoregressive", seed, temperature, draft_length)
        assert len(plain) == 40
        assert said("adaptive_length", seed, temperature, draft_length) == plain


@pytest.mark.usefixtures("own_registry")
def test_the_example_runs_as_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    passes = {line.split()[0]: int(line.split()[1]) for line in lines[:3]}
    assert passes["adaptive_length"] < passes["autoregressive"] == 60
    assert lines[3] == "same tokens: True"


def test_every_name_leads_to_the_strategy_of_that_name() -> None:
    assert registry.DEFAULT in SHIPPED
    for name in SHIPPED:
        assert strategy(name).name == name


@pytest.mark.usefixtures("own_registry")
def test_a_name_is_given_once_and_can_be_one() -> None:
    own = Strategy(
        name="own",
        edge=strategy("speculative").edge,
        cloud=strategy("speculative").cloud,
        drafts=True,
        source="here",
    )
    register_strategy("own", own)
    register_strategy("own", own)
    with pytest.raises(ConfigError, match="already a strategy 'own'"):
        register_strategy("own", "elsewhere:STRATEGY")
    with pytest.raises(ConfigError, match="already a strategy 'hybrid'"):
        register_strategy("hybrid", own)
    for name in ("", "Own", "1st", "hybrid+", "a b", "a" * 41, "ö"):
        with pytest.raises(ConfigError, match="strategy name"):
            register_strategy(name, own)
    assert strategy("own") is own
    with pytest.raises(ConfigError, match=r"unknown strategy 'none'; known: autoregressive, .*, own"):
        strategy("none")


def test_a_cloud_half_keeps_the_whole_contract() -> None:
    class Half(CloudPolicy):
        pass

    class Stranger:
        def next_pass(self, tree: SpeculationTree) -> Tokens:
            return ()

    def strategy_with(cloud: Any) -> Strategy:
        return Strategy(
            name="own", edge=strategy("speculative").edge, cloud=cloud, drafts=True, source="here"
        )

    with pytest.raises(ConfigError, match=r"'own'.*next_pass"):
        strategy_with(Half)
    with pytest.raises(ConfigError, match=r"'own'.*no decoding\.policy\.CloudPolicy"):
        strategy_with(Stranger)
    for name in SHIPPED:
        policy = strategy(name).cloud()
        assert isinstance(policy, CloudPolicy)
        assert policy is not strategy(name).cloud(), "a policy belongs to one answer"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("no_such_module_at_all:STRATEGY", "ModuleNotFoundError"),
        ("vlm_spec_decode.strategies.speculative:NOTHING", "AttributeError"),
        ("vlm_spec_decode.strategies.speculative", "no Strategy of this name"),
        ("vlm_spec_decode.strategies.base:EdgeConfig", "no Strategy of this name"),
        ("", "ValueError"),
    ],
)
def test_a_source_that_is_no_strategy_is_told_in_one_line(source: str, why: str) -> None:
    mine = StrategyRegistry()
    mine.add("mine", source)
    assert "mine" in mine
    with pytest.raises(ConfigError, match=f"strategy 'mine'.*{why}") as told:
        mine["mine"]
    assert "\n" not in str(told.value)


def test_an_entry_point_is_known_to_commands_nodes_and_launch_files(tmp_path: Path) -> None:
    (tmp_path / "my_strategy.py").write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    package = tmp_path / "my_package-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[vlm_spec_decode.strategies]\nadaptive_length = my_strategy:STRATEGY\n"
        "broken_one = not_there:STRATEGY\nhybrid = my_strategy:STRATEGY\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-c", LOOK], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if line.split(": ")[0] in KEYS)
    names = " ".join((*SHIPPED, "adaptive_length", "broken_one"))
    assert (lines["launch"], lines["node"], lines["rules"]) == (names, names, "coupled rejection")
    assert lines["broken"].startswith("ConfigError strategy 'broken_one' cannot be imported from not_there:")
    assert "".join(done.stdout.split()).count(names.replace(" ", "|")) == 6
    assert "already a strategy 'hybrid'" in done.stderr


KEYS = {"launch", "node", "rules", "broken"}
