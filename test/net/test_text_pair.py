"""A language-only pair, told in words what there is to see, over sockets and in one process.

Its weights are random: what is tested is that both ends read the same prompt and decode the same tokens.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.cli import main as cli
from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import ConfigError, InstructionError
from vlm_spec_decode.edge.ask import AskConfig, run
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.models.grammar import constrained
from vlm_spec_decode.models.loader import load_model
from vlm_spec_decode.strategies.registry import STRATEGIES
from vlm_spec_decode.train.config import TextConfig
from vlm_spec_decode.train.text import run_text
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.router import RouterLink

pytestmark = [pytest.mark.net, pytest.mark.sim]

SCENE = "a red chair 25 degrees left at 2.0 m , a blue box ahead at 1.4 m"
ASKED = AskConfig(instruction="go to the red chair", scene_text=SCENE)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> EdgeSettings:
    """The settings of an untrained pair in this process."""
    folder = tmp_path_factory.mktemp("pair")
    run_text(TextConfig("target", folder / "target", steps=0, batch=1, seed=1))
    run_text(TextConfig("draft", folder / "draft", steps=0, batch=1, seed=2))
    return EdgeSettings(target=str(folder / "target"), draft=str(folder / "draft"), max_tokens=24)


@pytest.fixture(scope="module")
def served(pair: EdgeSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeSettings]:
    """A cloud with the pair's target, as `vsd cloud --model FOLDER` makes it."""
    folder = tmp_path_factory.mktemp("keys")
    keys.generate(folder)
    target = load_model(pair.target)
    link = RouterLink("tcp://127.0.0.1:*", keys.cloud_keys(folder))
    held = constrained(target, target.codec, language())
    beside = load_model(pair.draft)
    helper = constrained(beside, beside.codec, language())
    server = CloudServer(link, ServerProtocol(target.card, language().digest), held, WallClock(), helper)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield replace(pair, cloud=server.address, keys=folder)
    finally:
        server.stop()
        thread.join(timeout=10)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_strategy_says_the_same_over_sockets(served: EdgeSettings, temperature: float) -> None:
    said = {}
    for name in STRATEGIES:
        settings = replace(served, strategy=name, temperature=temperature, seed=4)
        said[name] = run(replace(ASKED, settings=settings))
    plain = said["autoregressive"]
    assert len(plain["token_ids"]) > 3
    assert {tuple(found["token_ids"]) for found in said.values()} == {tuple(plain["token_ids"])}
    assert plain["image_bytes"] == 0


def test_the_command_line_tells_a_cloud_what_there_is_to_see(
    served: EdgeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["ask", "--instruction", ASKED.instruction, "--scene-text", SCENE, "--draft", served.draft]
    asked += ["--max-tokens", "24", "--json"]
    # Models without training say words and no action, which is a task that failed: code 1.
    assert cli.main([*asked, "--target", served.target]) == 1
    local = json.loads(capsys.readouterr().out)["token_ids"]
    assert cli.main([*asked, "--cloud", served.cloud, "--keys", str(served.keys)]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["token_ids"], told["error"]) == (local, "ActionParseError")
    plain = replace(served, cloud="", strategy="autoregressive")
    assert run(replace(ASKED, settings=plain))["token_ids"] == local


def test_what_is_told_is_part_of_the_prompt(pair: EdgeSettings) -> None:
    answers = [
        run(replace(ASKED, settings=pair, scene_text=scene))["token_ids"] for scene in (SCENE, "nothing")
    ]
    assert answers[0] != answers[1]


def test_a_pair_either_sees_or_is_told(pair: EdgeSettings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="either sees or is told"):
        run(replace(ASKED, image=tmp_path / "frame.jpg", settings=pair))
    assert run(ASKED)["actions"], "the shipped pair is the default"
    with pytest.raises(InstructionError, match="characters"):
        run(replace(ASKED, scene_text="a red chair " * 2000, settings=pair))
