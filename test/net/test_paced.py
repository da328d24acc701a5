"""A cloud and an edge that keep to a hardware profile, over real sockets, with the models that ship."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.cloud import app
from vlm_spec_decode.cloud.config import CloudConfig
from vlm_spec_decode.core.profiles import load_hardware
from vlm_spec_decode.core.trace import GenerationResult
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.edge.factory import bring_up
from vlm_spec_decode.edge.settings import EdgeSettings

pytestmark = [pytest.mark.net, pytest.mark.alone]

FRAME = Path(__file__).parents[2] / "docs" / "images" / "frame.jpg"
PROFILE = """
name: of this test
draft_ms: 30
step_ms: 60
verify_ms: 90
prefill_ms: 150
cloud_draft_ms: 10
"""
BUSY = 1.6
"""How many times as long a busy machine may take."""


def answered(settings: EdgeSettings) -> GenerationResult:
    """Return the answer about the frame."""
    runtime = bring_up(settings)
    try:
        picture = runtime.engine.picture(FRAME.read_bytes())
        *_, last = runtime.engine.answer(Observation(picture, "walk to the blue box"))
        assert last.result is not None
        return last.result
    finally:
        runtime.close()


@pytest.mark.timeout(180)
def test_an_answer_takes_what_the_profile_says_and_has_the_same_tokens(tmp_path: Path) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text(PROFILE)
    hardware = load_hardware(str(file))
    config = CloudConfig(
        language=language(True), bind="tcp://127.0.0.1:*", insecure=True, http="off", profile=str(file)
    )
    server, _ = app.build(config)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        free = answered(EdgeSettings(strategy="autoregressive"))
        plain = answered(EdgeSettings(cloud=server.address, strategy="autoregressive", hardware=hardware))
        drafted = answered(EdgeSettings(cloud=server.address, strategy="speculative", hardware=hardware))
    finally:
        server.stop()
        thread.join(timeout=20)
    assert plain.tokens == drafted.tokens == free.tokens

    due_s = hardware.pass_s(0, is_first=True) + (plain.target_passes - 1) * hardware.pass_s(0)
    assert due_s <= plain.total_s < BUSY * due_s
    for each in plain.rounds[1:]:
        assert hardware.pass_s(0) <= each.verify_s

    assert drafted.drafted > 0
    assert all(each.verify_s >= hardware.pass_s(1) for each in drafted.rounds[1:] if each.drafted)
    steps_s = sum(each.draft_s for each in drafted.rounds)
    assert steps_s >= drafted.drafted * hardware.draft_s(1) * 0.9, (
        "each drafted token took a step of the edge"
    )


@pytest.mark.timeout(120)
def test_both_models_in_one_process_keep_to_the_profile(tmp_path: Path) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text(PROFILE)
    hardware = load_hardware(str(file))
    found = answered(EdgeSettings(strategy="autoregressive", hardware=hardware))
    due_s = hardware.pass_s(0, is_first=True) + (found.target_passes - 1) * hardware.pass_s(0)
    assert due_s <= found.total_s < BUSY * due_s
