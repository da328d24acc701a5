"""How many files a reader must open to follow one remote answer of the shipped pair, by a profiler."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image as PilImage

from test.net.called_files import CalledFiles
from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.types import Observation
from vlm_spec_decode.edge.engine import Engine, EngineConfig
from vlm_spec_decode.edge.factory import EdgeSettings, load_draft, make_hello, make_sampling_params
from vlm_spec_decode.edge.image_upload import for_uplink
from vlm_spec_decode.edge.verifier_remote import RemoteVerifier
from vlm_spec_decode.models.grammar import constrained
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.dealer import DealerLink

pytestmark = [pytest.mark.net, pytest.mark.slow]

MOST_AT_THE_EDGE, MOST_IN_THE_CLOUD = 42, 44


@contextmanager
def profiled_cloud(folder: Path) -> Iterator[subprocess.Popen[str]]:
    arguments = [sys.executable, "-m", "test.net.called_files", str(folder)]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.communicate(timeout=60)


def called_since(cloud: subprocess.Popen[str]) -> list[str]:
    """Return the files of the cloud's functions that have run since the last call."""
    assert cloud.stdin
    assert cloud.stdout
    cloud.stdin.write("\n")
    cloud.stdin.flush()
    found: list[str] = json.loads(cloud.stdout.readline())
    return found


def photo() -> bytes:
    data = io.BytesIO()
    PilImage.new("RGB", (1280, 720), (90, 120, 50)).save(data, "JPEG")
    return data.getvalue()


def test_one_remote_answer_runs_through_few_files(tmp_path: Path) -> None:
    keys.generate(tmp_path)
    clock, settings, answer_language = WallClock(), EdgeSettings(), language(True)
    draft = load_draft(settings)
    drafter = constrained(draft, draft.codec, answer_language)
    config = EngineConfig(params=make_sampling_params(settings, draft.codec.stop_ids))
    with profiled_cloud(tmp_path) as cloud:
        assert cloud.stdout
        link = DealerLink(cloud.stdout.readline().strip(), keys.edge_keys(tmp_path), clock)
        verifier = RemoteVerifier(link, make_hello(draft.card, answer_language), clock)
        engine = Engine(drafter, draft.codec, verifier, clock, config)
        called_since(cloud)
        called = CalledFiles()
        try:
            # From the handshake and the camera's picture to the last token.
            called.is_on = True
            verifier.connect(30.0)
            # A short answer may be over after one round: another one then.
            for words in (
                "go to the red chair",
                "go back 8 m, turn left 200 degrees and sit",
                "what do you see",
            ):
                *_, last = engine.answer(Observation(for_uplink(photo()), words))
                if last.result and len(last.result.rounds) > 1:
                    break
            verifier.disconnect()
        finally:
            called.end()
        edge, in_cloud = called.take(), called_since(cloud)
    assert last.result
    assert len(last.result.rounds) > 1
    for half, files in (("client_protocol", edge), ("protocol", in_cloud)):
        assert any(file.endswith(f"/{half}.py") for file in files), "the profiler sees the link's threads"
        assert any(file.startswith("models/") for file in files)
    assert len(edge) <= MOST_AT_THE_EDGE, edge
    assert len(in_cloud) <= MOST_IN_THE_CLOUD, in_cloud
