"""The shipped models over encrypted sockets: every strategy says what `autoregressive` says."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.actions.parser import parse_answer
from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.errors import ActionParseError, CloudRefused
from vlm_spec_decode.core.trace import GenerationResult
from vlm_spec_decode.core.types import Image, Observation, SamplingParams
from vlm_spec_decode.edge.engine import EngineConfig
from vlm_spec_decode.edge.factory import EdgeRuntime, bring_up
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.models.grammar import constrained
from vlm_spec_decode.models.loader import load_model, shipped
from vlm_spec_decode.sim.camera import FrontCamera
from vlm_spec_decode.sim.scene import random_scene
from vlm_spec_decode.sim.world import World
from vlm_spec_decode.strategies.registry import STRATEGIES
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.router import RouterLink

pytestmark = [pytest.mark.net, pytest.mark.sim]

SEEDS = (1_000_001, 1_000_002, 1_000_003)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeSettings]:
    """A cloud with the shipped target, and how to reach it."""
    import threading

    folder = tmp_path_factory.mktemp("keys")
    keys.generate(folder)
    target = load_model(shipped("target"))
    link = RouterLink("tcp://127.0.0.1:*", keys.cloud_keys(folder))
    draft = load_model(shipped("draft"))
    colocated_draft = constrained(draft, draft.codec, language())
    held = constrained(target, target.codec, language())
    server = CloudServer(
        link, ServerProtocol(target.card, language().digest), held, WallClock(), colocated_draft
    )
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield EdgeSettings(cloud=server.address, keys=folder, draft_length=6)
    finally:
        server.stop()
        thread.join(timeout=10)


@pytest.fixture(scope="module")
def runtime(served: EdgeSettings) -> Iterator[EdgeRuntime]:
    runtime = bring_up(served)
    yield runtime
    runtime.close()


def frame(seed: int) -> tuple[Image, str]:
    scene = random_scene(seed)
    camera = FrontCamera(World(scene), 448, 252)
    jpeg = camera.jpeg()
    camera.close()
    return Image(jpeg, 448, 252), scene.objects[0].name


def ask(
    runtime: EdgeRuntime, observation: Observation, name: str, params: SamplingParams
) -> GenerationResult:
    *_, last = runtime.engine.answer(observation, EngineConfig(strategy=name, params=params, draft_length=6))
    assert last.result
    return last.result


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_every_strategy_says_the_same_over_sockets(runtime: EdgeRuntime, temperature: float) -> None:
    base = runtime.engine.config.params
    for seed in SEEDS:
        image, thing = frame(seed)
        observation = Observation(image, f"go to the {thing}")
        params = SamplingParams(temperature=temperature, max_tokens=48, stop_ids=base.stop_ids, seed=seed)
        results = {name: ask(runtime, observation, name, params) for name in STRATEGIES}
        plain = results["autoregressive"]
        assert {r.tokens for r in results.values()} == {plain.tokens}
        assert results["speculative"].target_passes < plain.target_passes
        assert results["autoregressive"].usage.image_bytes == len(image.jpeg) or temperature
        assert results["speculative"].usage.image_bytes == 0, "the cloud has this frame already"


def test_what_the_grammar_forces_needs_no_pass(runtime: EdgeRuntime) -> None:
    """Behind `done()` an answer can only end."""
    image, _ = frame(SEEDS[0])
    plain = ask(runtime, Observation(image, "sit down"), "autoregressive", runtime.engine.config.params)
    assert plain.text.endswith("sit() done()")
    assert plain.target_passes == len(plain.tokens) - 1


def test_an_image_that_cannot_be_decoded_is_refused_by_name(runtime: EdgeRuntime) -> None:
    broken = Image(b"\xff\xd8\xff" + bytes(500), 448, 252)
    config = EngineConfig(strategy="autoregressive", params=runtime.engine.config.params)
    with pytest.raises(CloudRefused, match="image"):
        list(runtime.engine.answer(Observation(broken, "go"), config))
    image, thing = frame(SEEDS[0])
    assert ask(runtime, Observation(image, f"go to the {thing}"), "speculative", config.params).tokens


def test_ask_without_a_cloud_says_the_same(runtime: EdgeRuntime, tmp_path: Path) -> None:
    from vlm_spec_decode.edge.ask import AskConfig, run

    image, thing = frame(SEEDS[1])
    path = tmp_path / "frame.png"
    with PilImage.open(io.BytesIO(image.jpeg)) as picture:
        assert np.asarray(picture).std() > 5
    path = tmp_path / "frame.jpg"
    path.write_bytes(image.jpeg)
    local = run(AskConfig(instruction=f"go to the {thing}", image=path))
    remote = ask(
        runtime, Observation(image, f"go to the {thing}"), "autoregressive", runtime.engine.config.params
    )
    assert tuple(local["token_ids"]) == remote.tokens
    assert local["target_passes"] < len(remote.tokens)


def test_an_edge_without_the_grammar_is_refused_by_name(served: EdgeSettings) -> None:
    with pytest.raises(CloudRefused, match="grammar_mismatch"):
        bring_up(replace(served, grammar=False))


def test_every_answer_parses_even_of_a_hot_model_and_without_the_grammar_it_may_not(
    runtime: EdgeRuntime,
) -> None:
    """At such a temperature the models babble; what the grammar lets through are still actions."""
    image, thing = frame(SEEDS[2])
    observation = Observation(image, f"go to the {thing}")
    stop_ids = runtime.engine.config.params.stop_ids
    free = bring_up(EdgeSettings(grammar=False))
    broken = 0
    for seed in range(4):
        params = SamplingParams(temperature=2.0, max_tokens=200, stop_ids=stop_ids, seed=seed)
        said = {name: ask(runtime, observation, name, params) for name in ("autoregressive", "speculative")}
        assert said["autoregressive"].tokens == said["speculative"].tokens
        assert said["speculative"].tokens[-1] in stop_ids
        assert parse_answer(said["speculative"].text)
        try:
            ask(free, observation, "autoregressive", params)
        except ActionParseError:
            broken += 1
    free.close()
    assert broken, "the grammar makes the difference"


def test_without_the_grammar_every_token_takes_a_pass() -> None:
    free = bring_up(EdgeSettings(grammar=False))
    image, thing = frame(SEEDS[1])
    params = free.engine.config.params
    plain = ask(free, Observation(image, f"go to the {thing}"), "autoregressive", params)
    assert plain.target_passes == len(plain.tokens)
    again = ask(free, Observation(image, f"go to the {thing}"), "speculative", params)
    assert again.tokens == plain.tokens
    free.close()
