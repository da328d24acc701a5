"""How large a picture should be: what a model can use, and what the link to it carries in time.

Numbers only; `edge.picture_size` chooses by them, `models.families.image_limits` finds a model's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""

USUAL_WIDTH_PX = 448
"""Width of pictures whose use is not known: a 1080p JPEG of 150 kB becomes one of some 15 kB."""

MIN_WIDTH_PX = 224
"""No picture is reduced further for the sake of a slow link: smaller ones show too little."""

MAX_SIDE_PX, MAX_BOXES = 16_384, 64
"""The largest side and number of boxes that limits may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """The largest picture of which a model's image processor keeps the detail; pictures keep their shape.

    `max_pixels` bounds width times height. A picture in one of the boxes `inside` is as large as can be used,
    the best box for its shape counts: longest edges and grids of tiles. One that covers the box `cover` is
    squashed or cropped to it. Several kinds bound together. None of them: the use is not known, and pictures
    are `USUAL_WIDTH_PX` wide. Raises ValueError for sides, areas or numbers of boxes that no picture has.
    """

    max_pixels: int = 0
    inside: tuple[Size, ...] = ()
    cover: Size | None = None

    def __post_init__(self) -> None:
        boxes = self.inside if self.cover is None else (*self.inside, self.cover)
        if len(self.inside) > MAX_BOXES or not 0 <= self.max_pixels <= MAX_SIDE_PX**2:
            raise ValueError(f"{len(self.inside)} boxes and {self.max_pixels} pixels")
        if not all(1 <= side <= MAX_SIDE_PX for box in boxes for side in box):
            raise ValueError(f"a box of {boxes}")

    @property
    def is_known(self) -> bool:
        """Whether they bound anything."""
        return bool(self.max_pixels or self.inside or self.cover)

    def useful_width(self, width: int, height: int) -> int:
        """Return the width beyond which a picture of this size shows the model nothing more, in pixels.

        Never below `USUAL_WIDTH_PX`, unless the picture is: a processor that shrinks a larger JPEG averages
        its artefacts away, so a square of 128 pixels is better fed from 448 than from 128.
        """
        found: list[int] = []
        if self.max_pixels:
            # s w * s h <= max_pixels
            found.append(math.floor(width * math.sqrt(self.max_pixels / (width * height)) + 1e-6))
        if self.inside:
            # s w <= box width and s h <= box height
            found.append(math.floor(max(min(w, width * h / height) for w, h in self.inside) + 1e-6))
        if self.cover:
            # s w >= box width and s h >= box height
            found.append(math.ceil(max(self.cover[0], width * self.cover[1] / height) - 1e-6))
        return min(width, max(USUAL_WIDTH_PX, min(found, default=0)))


UNKNOWN_LIMITS = ImageLimits()
"""Those of a target that does not say what it can use."""


WHOLE = ImageLimits(max_pixels=MAX_SIDE_PX**2)
"""Those of a target that can use every picture as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uplink:
    """What is known of the link that carries pictures to the target; the defaults are those without a link.

    `bps` is its rate in bit/s, measured on pictures of `measured_bytes`; None before the first one. At most
    `window_bytes` are under way in a round trip of `rtt_s` (0: no bound), and a picture has at most
    `max_bytes`.
    """

    bps: float | None = math.inf
    measured_bytes: float = math.inf
    window_bytes: float = math.inf
    rtt_s: float = 0.0
    max_bytes: float = math.inf

    def bytes_within(self, seconds: float) -> float | None:
        """Return how many bytes arrive within `seconds` of the first; None before a rate was measured.

        At most four times as many as the rate was measured on: few bytes say little about many.
        """
        if self.bps is None:
            return None
        rated = seconds * self.bps / 8
        if rated > self.window_bytes and self.rtt_s > 0:
            # A window per round trip is the most that passes once the first window is out.
            rated = min(rated, max(self.window_bytes, seconds * self.window_bytes / self.rtt_s))
        return min(rated, self.max_bytes, 4 * self.measured_bytes)


NO_LINK = Uplink()
"""That of a target in this process."""
