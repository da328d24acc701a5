"""The size at which a picture is sent: what the target can use, as far as the uplink carries it in time.

Widths are steps of a ladder, so that the size does not change with every frame: one step more must fit with
room to spare before it is taken. What was chosen is checked on the JPEG itself. The draft model sees the same
JPEG as the target, whose name is its digest.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Protocol

from PIL import Image as PilImage

from vlm_spec_decode.core.images import DECODED
from vlm_spec_decode.core.types import (
    MIN_WIDTH_PX,
    NO_LINK,
    UNKNOWN_LIMITS,
    USUAL_WIDTH_PX,
    Image,
    ImageLimits,
    Size,
    Uplink,
)
from vlm_spec_decode.edge.image_upload import decode_frame, small_jpeg
from vlm_spec_decode.strategies.estimators import RunningMean

LADDER = tuple(round(USUAL_WIDTH_PX * 2 ** (step / 4)) for step in range(-4, 30))
"""Widths in pixels, each 19 % above the one before: 224, 266, …, 448, 533, …, 68184."""

HEADROOM = 0.85
"""A larger picture must fit this share of the bytes: noise between frames does not make sizes alternate."""

USUAL_BYTES_PER_PIXEL = 0.13
"""Of JPEGs of a camera, before the first was made: 15 kB for 448 x 252."""


class Destination(Protocol):
    """Where pictures go; `core.ports.Verifier` is one."""

    @property
    def image_limits(self) -> ImageLimits:
        """The largest picture that the target can use."""
        ...

    @property
    def uplink(self) -> Uplink:
        """What is known of the link to it."""
        ...


@dataclass(frozen=True, slots=True)
class FixedDestination:
    """A target and a link that do not change; by default an unknown target, and no link."""

    image_limits: ImageLimits = UNKNOWN_LIMITS
    uplink: Uplink = NO_LINK


class PictureSizer:
    """Reduces pictures for one destination. `budget_s`: how long one may take on the uplink (seconds).

    From any thread: the lock is held while a size is chosen, not while a picture is encoded.
    """

    def __init__(self, destination: Destination, budget_s: float) -> None:
        self._destination = destination
        self._budget_s = budget_s
        self._step = LADDER.index(USUAL_WIDTH_PX)
        self._bytes_per_pixel = RunningMean(USUAL_BYTES_PER_PIXEL, rate=0.5, trust=0)
        self._lock = threading.Lock()

    def reduce(self, data: bytes) -> Image:
        """Return the picture in a file's bytes as both models will see it: an upright JPEG.

        An upright JPEG that is small enough already is passed on byte for byte. Raises ImageError.
        """
        rgb, is_upright_jpeg = decode_frame(data)
        useful, allowed = self._bounds(rgb.size)
        if is_upright_jpeg and rgb.width <= useful and self._passes(rgb.width, len(data), useful, allowed):
            return DECODED.add(Image(data, rgb.width, rgb.height), rgb)
        return self._encode(rgb, useful, allowed)

    def reduce_pixels(self, rgb: PilImage.Image) -> Image:
        """Return an RGB picture likewise."""
        return self._encode(rgb, *self._bounds(rgb.size))

    def _bounds(self, size: Size) -> tuple[int, float]:
        """Return the width that is of use, in pixels, and the bytes that arrive in time."""
        useful = self._destination.image_limits.useful_width(*size)
        allowed = self._destination.uplink.bytes_within(self._budget_s)
        if allowed is None:
            # Nothing was measured: the first picture measures it.
            return min(useful, USUAL_WIDTH_PX), math.inf
        return useful, allowed

    def _passes(self, width: int, num_bytes: int, useful: int, allowed: float) -> bool:
        """Tell whether a JPEG of a useful width arrives in time as it is; the step then becomes its own."""
        with self._lock:
            is_larger = width > min(LADDER[self._step], useful)
            fits = num_bytes <= allowed * (HEADROOM if is_larger else 1.0)
            if fits and math.isfinite(allowed):
                self._step = max(self._step, _step_above(width))
            return fits

    def _encode(self, rgb: PilImage.Image, useful: int, allowed: float) -> Image:
        if math.isinf(allowed):
            return self._jpeg(rgb, useful)
        image = self._jpeg(rgb, self._choose(rgb.size, useful, allowed))
        # The estimate was too low: each turn is at least a step narrower, so this ends at the lowest.
        while len(image.jpeg) > allowed and image.width > MIN_WIDTH_PX:
            narrower = max(0, _step_above(image.width) - 1)
            image = self._jpeg(rgb, self._choose(rgb.size, useful, allowed, most=narrower))
        return image

    def _choose(self, size: Size, useful: int, allowed: float, most: int | None = None) -> int:
        """Return the width for a picture: down as far as necessary, or up as far as there is room to spare.

        With `most` that step at most: the picture has turned out larger than was expected.
        """
        with self._lock:
            step = self._step if most is None else min(self._step, most)
            while step and self._expected_bytes(step, size, useful) > allowed:
                step -= 1
            while most is None and LADDER[step] < useful:
                if self._expected_bytes(step + 1, size, useful) > HEADROOM * allowed:
                    break
                step += 1
            self._step = step
            return min(LADDER[step], useful)

    def _expected_bytes(self, step: int, size: Size, useful: int) -> float:
        width = min(LADDER[step], useful)
        # Larger JPEGs of one scene have fewer bytes per pixel, so a step up rarely costs more than this.
        return self._bytes_per_pixel.value * width * width * size[1] / size[0]

    def _jpeg(self, rgb: PilImage.Image, width: int) -> Image:
        image = small_jpeg(rgb, width)
        with self._lock:
            self._bytes_per_pixel.learn(len(image.jpeg) / (image.width * image.height))
        return image


def _step_above(width: int) -> int:
    """Return the lowest step that is not narrower than `width`."""
    return next((step for step, each in enumerate(LADDER) if each >= width), len(LADDER) - 1)
