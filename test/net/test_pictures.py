"""Pictures over real sockets: both ends see the same pixels, of a size that target and link suit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from test.edge.test_picture_size import frame
from vlm_spec_decode.actions.grammar import language
from vlm_spec_decode.cloud.protocol import ServerProtocol
from vlm_spec_decode.cloud.server import CloudServer
from vlm_spec_decode.core.clock import WallClock
from vlm_spec_decode.core.profiles import LinkProfile
from vlm_spec_decode.core.types import UNKNOWN_LIMITS, Image, ImageLimits, Observation
from vlm_spec_decode.edge.factory import EdgeRuntime, bring_up
from vlm_spec_decode.edge.image_upload import for_uplink, for_uplink_again
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.models.engines.torch_loop import VlmModel
from vlm_spec_decode.models.grammar import constrained
from vlm_spec_decode.models.loader import load_model, shipped
from vlm_spec_decode.transport import keys
from vlm_spec_decode.transport.router import RouterLink

pytestmark = pytest.mark.net

USED = ImageLimits(max_pixels=960 * 540)
"""What the target says that it can use."""


@dataclass
class Seen:
    """What the models of this process were shown, by the model's name."""

    images: dict[str, list[Image]] = field(default_factory=dict)

    def last(self) -> tuple[Image, Image]:
        """Return the newest image of the draft and of the target."""
        draft, target = (self.images[name][-1] for name in sorted(self.images))
        return draft, target


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found, open_one = Seen(), VlmModel.open

    def opening(self, observation):  # type: ignore[no-untyped-def]
        found.images.setdefault(self.card.model_id, []).append(observation.image)
        return open_one(self, observation)

    monkeypatch.setattr(VlmModel, "open", opening)
    return found


@pytest.fixture(scope="module", params=[USED, UNKNOWN_LIMITS], ids=["says", "does not say"])
def cloud(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeSettings]:
    """A cloud whose target says what it can use, or does not, and how to reach it."""
    folder: Path = tmp_path_factory.mktemp("keys")
    keys.generate(folder)
    target = load_model(shipped("target"))
    link = RouterLink("tcp://127.0.0.1:*", keys.cloud_keys(folder))
    held = constrained(target, target.codec, language())
    card = replace(target.card, image_limits=request.param)
    server = CloudServer(link, ServerProtocol(card, language().digest), held, WallClock())
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield EdgeSettings(cloud=server.address, keys=folder, strategy="speculative", max_tokens=12)
    finally:
        server.stop()
        thread.join(timeout=10)


def asked(runtime: EdgeRuntime, data: bytes) -> Image:
    """Ask about a camera's frame; return the image that was made of it."""
    image = runtime.engine.picture(data)
    for _ in runtime.engine.answer(Observation(image, "go to the red chair")):
        pass
    return image


def frames(first: int) -> Iterator[bytes]:
    """Yield frames that no other test has sent: the cloud keeps images, and asks for none twice."""
    for seed in range(first, first + 5):
        yield frame(1280, 720, 1.5, seed)


def test_both_ends_see_the_same_pixels_as_large_as_the_target_can_use(
    cloud: EdgeSettings, seen: Seen
) -> None:
    runtime = bring_up(cloud)
    says = runtime.verifier.image_limits == USED
    try:
        for number, data in enumerate(frames(0)):
            image = asked(runtime, data)
            draft, target = seen.last()
            assert draft.digest == target.digest == image.digest
            assert (target.width, target.height) == (image.width, image.height)
            assert for_uplink_again(data, image.width, image.digest).digest == image.digest, (
                "a bag can repeat it"
            )
            if not number or not says:
                assert image == for_uplink(data), "unknown target, or unknown link: as ever"
        assert image.width == (960 if says else 448)
    finally:
        runtime.close()


@pytest.mark.parametrize(("mbps", "budget_s"), [(1.0, 0.25), (0.4, 0.5)])
def test_a_slow_link_gets_pictures_that_it_carries_in_time(
    cloud: EdgeSettings, seen: Seen, mbps: float, budget_s: float
) -> None:
    """The rate that is measured through real sockets is the link's, within a fifth."""
    link = LinkProfile("slow", rtt_ms=40, up_mbps=mbps, down_mbps=20)
    runtime = bring_up(replace(cloud, link=link, image_budget_s=budget_s))
    try:
        for data in frames(round(100 * mbps)):
            image = asked(runtime, data)
            draft, target = seen.last()
            assert draft.digest == target.digest == image.digest
        measured = runtime.verifier.uplink.bps
        assert measured is not None
        assert 0.8 * mbps <= measured / 1e6 <= 1.2 * mbps
        assert len(image.jpeg) * 8 / (mbps * 1e6) <= 1.2 * budget_s or image.width == 224
    finally:
        runtime.close()
