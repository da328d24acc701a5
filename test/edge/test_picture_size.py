"""The size at which pictures are sent: what the target can use, what the link carries, and no flapping."""

from __future__ import annotations

import io
import itertools
import json
import math
import threading
import time
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from PIL import Image as PilImage
from PIL import ImageFilter

from test.mission.scripted import result_of
from vlm_spec_decode.core.images import decode_jpeg
from vlm_spec_decode.core.types import (
    MAX_SIDE_PX,
    MIN_WIDTH_PX,
    NO_LINK,
    UNKNOWN_LIMITS,
    USUAL_WIDTH_PX,
    WHOLE,
    Image,
    ImageLimits,
    Observation,
    Uplink,
)
from vlm_spec_decode.edge.image_upload import for_uplink, for_uplink_again, small_jpeg
from vlm_spec_decode.edge.picture_size import LADDER, FixedDestination, PictureSizer
from vlm_spec_decode.mission.state import Answer
from vlm_spec_decode.strategies.estimators import UplinkRate

TINY = ImageLimits(cover=(128, 128))
"""The shipped models': every frame is squashed to this."""


@lru_cache(maxsize=32)
def picture(width: int, height: int, blur: float = 1.5, seed: int = 0) -> PilImage.Image:
    """A picture of noise; the more it is blurred, the fewer bytes its JPEG has."""
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return PilImage.fromarray(noise).filter(ImageFilter.GaussianBlur(blur))


@lru_cache(maxsize=32)
def frame(width: int, height: int, blur: float = 1.5, seed: int = 0, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    picture(width, height, blur, seed).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@dataclass
class Link:
    """A destination whose link changes. `measure` is what a picture that has gone up tells of it."""

    image_limits: ImageLimits = WHOLE
    uplink: Uplink = Uplink(bps=None)  # noqa: RUF009

    def measure(self, image: Image, bps: float) -> None:
        self.uplink = Uplink(bps=bps, measured_bytes=len(image.jpeg))


# What a model can use --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "size", "width"),
    [
        (UNKNOWN_LIMITS, (1280, 720), 448),
        (TINY, (1280, 720), 448),
        (WHOLE, (1920, 1080), 1920),
        (ImageLimits(cover=(336, 336)), (1280, 720), 598),
        (ImageLimits(cover=(896, 896)), (1920, 1080), 1593),
        (ImageLimits(max_pixels=1_003_520), (1920, 1080), 1335),
        (ImageLimits(inside=((2048, 2048),)), (3840, 2160), 2048),
        (ImageLimits(inside=((1008, 336), (672, 672), (336, 1008))), (1280, 720), 672),
        (ImageLimits(inside=((1008, 336), (672, 672), (336, 1008))), (2000, 500), 1008),
        (ImageLimits(inside=((2048, 2048),), max_pixels=645_120), (1920, 1080), 1070),
        (WHOLE, (320, 240), 320),
    ],
)
def test_what_a_target_can_use(limits: ImageLimits, size: tuple[int, int], width: int) -> None:
    assert limits.useful_width(*size) == width


sides = st.integers(1, 8000)
boxes = st.tuples(st.integers(1, MAX_SIDE_PX), st.integers(1, MAX_SIDE_PX))
limits = st.builds(
    ImageLimits,
    max_pixels=st.integers(0, MAX_SIDE_PX**2),
    inside=st.lists(boxes, max_size=3).map(tuple),
    cover=st.none() | boxes,
)


@given(limits=limits, width=sides, height=sides)
def test_a_picture_is_never_enlarged_and_never_reduced_below_the_usual_width(
    limits: ImageLimits, width: int, height: int
) -> None:
    useful = limits.useful_width(width, height)
    assert min(width, USUAL_WIDTH_PX) <= useful <= width
    if useful > USUAL_WIDTH_PX and limits.max_pixels:
        assert useful * useful * height / width <= limits.max_pixels * (1 + 1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_pixels": -1},
        {"max_pixels": MAX_SIDE_PX**2 + 1},
        {"inside": ((0, 5),)},
        {"cover": (5, MAX_SIDE_PX + 1)},
        {"inside": ((5, 5),) * 65},
    ],
)
def test_limits_that_no_picture_has_are_refused(wrong: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=r"box|pixels"):
        ImageLimits(**wrong)


# What the link carries -------------------------------------------------------------------------------


def test_bytes_within_a_time() -> None:
    assert Uplink(bps=None).bytes_within(1.0) is None
    assert NO_LINK.bytes_within(0.25) == math.inf
    assert Uplink(bps=8e6).bytes_within(0.25) == 250_000
    assert Uplink(bps=8e6, measured_bytes=15_000).bytes_within(0.25) == 60_000
    assert Uplink(bps=8e6, max_bytes=9_000).bytes_within(0.25) == 9_000
    windowed = Uplink(bps=80e6, window_bytes=32_768, rtt_s=0.1)
    assert windowed.bytes_within(0.25) == 2.5 * 32_768, "a window per round trip"
    assert windowed.bytes_within(0.01) == 32_768, "the first window needs no round trip"
    assert Uplink(bps=8e5, window_bytes=32_768, rtt_s=0.1).bytes_within(0.25) == 25_000


# The sizes that are chosen ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1280, 720), (1920, 1080), (640, 480), (448, 252), (720, 1280), (100, 80)])
@pytest.mark.parametrize("limits", [UNKNOWN_LIMITS, TINY])
@pytest.mark.parametrize("uplink", [NO_LINK, Uplink(bps=None), Uplink(bps=20e6)])
def test_models_that_see_128_pixels_get_the_very_bytes_that_they_got_before(
    size: tuple[int, int], limits: ImageLimits, uplink: Uplink
) -> None:
    data = frame(*size)
    assert PictureSizer(FixedDestination(limits, uplink), 0.25).reduce(data) == for_uplink(data)


def test_the_first_picture_is_the_usual_one_and_the_next_ones_use_the_link() -> None:
    link = Link()
    sizer = PictureSizer(link, 0.25)
    widths = []
    for _ in range(4):
        image = sizer.reduce(frame(1280, 720))
        widths.append(image.width)
        link.measure(image, 20e6)
    assert widths[0] == USUAL_WIDTH_PX
    assert widths[1] > USUAL_WIDTH_PX, "at most four times the bytes that the rate was measured on"
    assert widths[2:] == [1280, 1280]


def test_without_a_link_a_frame_goes_as_it_is() -> None:
    data = frame(1280, 720)
    image = PictureSizer(FixedDestination(WHOLE, NO_LINK), 0.25).reduce(data)
    assert image.jpeg is data
    assert (image.width, image.height) == (1280, 720)


def test_a_frame_that_is_not_upright_is_turned_and_keeps_its_size() -> None:
    exif = PilImage.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture(1280, 720).save(buffer, "JPEG", exif=exif)
    image = PictureSizer(FixedDestination(WHOLE, NO_LINK), 0.25).reduce(buffer.getvalue())
    assert (image.width, image.height) == (720, 1280)


shapes = st.sampled_from([(1280, 720), (640, 480), (720, 1280), (960, 540), (300, 200), (1000, 90)])


@settings(max_examples=25, deadline=None)
@given(
    shape=shapes,
    blur=st.sampled_from([0.3, 1.5, 5.0]),
    kbps=st.integers(20, 40_000),
    budget_s=st.sampled_from([0.05, 0.25, 2.0]),
    limits=st.sampled_from([UNKNOWN_LIMITS, TINY, WHOLE, ImageLimits(max_pixels=300_000)]),
)
def test_what_is_chosen_fits_the_time_or_is_the_smallest(
    shape: tuple[int, int], blur: float, kbps: int, budget_s: float, limits: ImageLimits
) -> None:
    width, height = shape
    link = Link(limits)
    sizer = PictureSizer(link, budget_s)
    data = frame(width, height, blur)
    image = sizer.reduce(data)
    for _ in range(6):
        link.measure(image, kbps * 1e3)
        image = sizer.reduce(data)
        useful = limits.useful_width(width, height)
        allowed = link.uplink.bytes_within(budget_s)
        assert allowed is not None
        assert min(width, MIN_WIDTH_PX) <= image.width <= useful
        assert len(image.jpeg) <= allowed or image.width <= MIN_WIDTH_PX
        assert abs(image.height - image.width * height / width) <= 1, "its shape stays"
        assert decode_jpeg(image.jpeg).size == (image.width, image.height)
    # The largest that fits: two steps more would not have gone.
    wider = [each for each in LADDER if each > image.width][1:2]
    if wider and wider[0] < useful:
        assert len(for_uplink(data, wider[0]).jpeg) > 0.85 * min(allowed, 4 * len(image.jpeg))


SIZE = 800, 450
TREMBLING = [(1.07, 0), (0.93, 0)] * 6


@settings(max_examples=15, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    kbps=st.integers(150, 8000),
    noise=st.lists(st.tuples(st.floats(0.93, 1.07), st.integers(0, 5)), min_size=12, max_size=12),
)
@example(kbps=498, noise=TREMBLING)
@example(kbps=2174, noise=TREMBLING)
@example(kbps=2556, noise=TREMBLING)
def test_the_size_does_not_flap_while_rate_and_scene_only_tremble(
    kbps: int, noise: list[tuple[float, int]]
) -> None:
    link = Link()
    sizer = PictureSizer(link, 0.25)
    for _ in range(6):
        link.measure(sizer.reduce(frame(*SIZE)), kbps * 1e3)
    widths = []
    for factor, seed in noise:
        image = sizer.reduce(frame(*SIZE, 1.5, seed))
        link.measure(image, kbps * 1e3 * factor)
        widths.append(image.width)
    steps = [b - a for a, b in itertools.pairwise(widths) if a != b]
    turns = sum(a * b < 0 for a, b in itertools.pairwise(steps))
    assert turns == 0, widths


def test_more_rate_gives_larger_pictures_and_less_gives_smaller_ones_again() -> None:
    def settled(sizer: PictureSizer, link: Link, mbps: float) -> int:
        for _ in range(8):
            image = sizer.reduce(frame(1280, 720))
            link.measure(image, mbps * 1e6)
        return image.width

    link = Link()
    sizer = PictureSizer(link, 0.25)
    up = [settled(sizer, link, mbps) for mbps in (0.05, 0.5, 2, 8, 40)]
    down = [settled(sizer, link, mbps) for mbps in (8, 2, 0.5, 0.05)]
    assert up == sorted(up)
    assert up[0] == MIN_WIDTH_PX
    assert up[-1] == 1280
    assert down == sorted(down, reverse=True)
    assert all(abs(LADDER.index(a) - LADDER.index(b)) <= 1
               for a, b in zip(up[-2::-1], down, strict=True) if {a, b} <= set(LADDER))  # fmt: skip


def test_a_picture_as_wide_as_no_ladder_step_ends_too() -> None:
    strip = PilImage.new("RGB", (60_000, 4))
    link = Link(WHOLE, Uplink(bps=1e9))
    assert PictureSizer(link, 0.25).reduce_pixels(strip).width <= 60_000
    link.uplink = Uplink(bps=1.0)
    assert PictureSizer(link, 0.25).reduce_pixels(strip).width == MIN_WIDTH_PX


def test_an_answer_names_the_picture_that_both_models_saw_so_that_it_can_be_made_again() -> None:
    data = frame(800, 450)
    for image in (for_uplink(data, 640), for_uplink(data, 800), small_jpeg(picture(800, 450), 800)):
        answer = Answer(
            mission="m",
            number=1,
            observation=Observation(image, "go"),
            actions=(),
            result=result_of("done()"),
        )
        told = json.loads(answer.to_json())
        assert told["image_width"] == image.width
        assert bytes.fromhex(told["image_digest"]) == image.digest
    encoded = small_jpeg(decode_jpeg(data), 800)
    assert for_uplink_again(data, 800, encoded.digest) == encoded, "encoded anew, though it was small enough"
    assert for_uplink_again(data, 800, for_uplink(data, 800).digest).jpeg is data
    assert for_uplink_again(data, 800, b"of another library").jpeg is data
    blind = Answer(
        mission="m", number=1, observation=Observation(None, "go"), actions=(), result=result_of("x")
    )
    assert json.loads(blind.to_json())["image_digest"] == ""


def test_tiny_pictures_do_not_spoil_the_estimate_of_the_uplink() -> None:
    """Acknowledgements of a few hundred bytes are apart by what the network varies, not by its rate."""
    rate, random = UplinkRate(), np.random.default_rng(0)
    for _ in range(3):
        rate.learn(300, float(random.uniform(0, 0.015)))
    assert rate.bps is None
    for _ in range(3):
        rate.learn(15_000, 8 * 15_000 / 20e6)
    for _ in range(40):
        rate.learn(300, float(random.uniform(0, 0.015)))
    assert rate.bps == pytest.approx(20e6)
    assert rate.most_bytes == 15_000


def test_a_slow_link_is_measured_on_the_small_pictures_that_it_gets() -> None:
    """At 60 kbit/s a picture of 0.25 s has 1,875 bytes; nothing larger comes to tell of a quicker link."""
    rate = UplinkRate()
    rate.learn(15_000, 8 * 15_000 / 60e3)
    for _ in range(20):
        allowed = int(0.25 * (rate.bps or 0.0) / 8)
        rate.learn(allowed, 8 * allowed / 8e6 + 0.005)
    assert rate.bps is not None
    assert rate.bps > 4e6


def test_threads_choose_sizes_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several answers share a sizer: a step must not change between its choice and its check."""
    inside, most = [], []
    expected_bytes = PictureSizer._expected_bytes

    def slowly(self: PictureSizer, *given: object) -> float:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.002)
        inside.pop()
        return expected_bytes(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(PictureSizer, "_expected_bytes", slowly)
    sizer = PictureSizer(Link(uplink=Uplink(bps=2e6, measured_bytes=15_000)), 0.1)
    data = frame(900, 600)
    threads = [threading.Thread(target=sizer.reduce, args=(data,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
