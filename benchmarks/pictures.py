"""The size of pictures for each family: what it can use, its bytes, its tokens, and its time on a link.

    python benchmarks/pictures.py           print the tables and a JSON line
    python benchmarks/pictures.py --write   write them into docs/pictures.md

A frame of the simulated front camera (1280 x 720 as the Go2's, and 1920 x 1080) is reduced as the edge
reduces it. The processors have the families' published settings (`lib/processors.py`); no weights are needed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("MUJOCO_GL", "osmesa")
os.environ.setdefault("PYOPENGL_PLATFORM", "osmesa")

from lib.processors import PROCESSORS, ProcessorEntry
from PIL import Image as PilImage

from vlm_spec_decode.core.types import NO_LINK, Image, ImageLimits, Uplink
from vlm_spec_decode.edge.picture_size import FixedDestination, PictureSizer
from vlm_spec_decode.edge.settings import EdgeSettings
from vlm_spec_decode.models.families.image_limits import processor_limits
from vlm_spec_decode.sim.camera import FrontCamera
from vlm_spec_decode.sim.scene import random_scene
from vlm_spec_decode.sim.world import World

PAGE = Path(__file__).resolve().parents[1] / "docs" / "pictures.md"
BEGIN, END = "<!-- benchmarks/pictures.py -->", "<!-- end -->"
CAMERAS = ((1280, 720), (1920, 1080))
RATES_MBPS = (1, 5, 20)
SEED = 1_000_001


@dataclass
class Measured:
    """A link of a known rate, once the first picture has gone over it."""

    image_limits: ImageLimits
    bps: float
    uplink: Uplink = Uplink(bps=None)  # noqa: RUF009

    def sent(self, image: Image) -> None:
        """Take what a picture tells of the link."""
        self.uplink = Uplink(bps=self.bps, measured_bytes=len(image.jpeg))


def camera_frame(width: int, height: int) -> PilImage.Image:
    """Return what the simulated front camera sees in a room."""
    camera = FrontCamera(World(random_scene(SEED)), width, height)
    try:
        with PilImage.open(io.BytesIO(camera.jpeg())) as picture:
            return picture.convert("RGB")
    finally:
        camera.close()


def chosen(limits: ImageLimits, frame: PilImage.Image, mbps: float) -> Image:
    """Return the picture that a link of this rate settles at."""
    link = Measured(limits, mbps * 1e6)
    sizer = PictureSizer(link, EdgeSettings().image_budget_s)
    for _ in range(12):
        image = sizer.reduce_pixels(frame)
        link.sent(image)
    return image


def figures(entry: ProcessorEntry, frame: PilImage.Image, image: Image) -> dict[str, Any]:
    """Return size, bytes, tokens and times of one picture."""
    tokens = entry.image_tokens(frame.resize((image.width, image.height)))
    num_bytes = len(image.jpeg)
    times = {f"at_{mbps}_mbps_s": round(num_bytes * 8 / (mbps * 1e6), 3) for mbps in RATES_MBPS}
    return {"width": image.width, "height": image.height, "bytes": num_bytes, "tokens": tokens, **times}


def rows() -> Iterator[dict[str, Any]]:
    """Yield for each camera and family what it can use, and what is sent at each rate."""
    for width, height in CAMERAS:
        frame = camera_frame(width, height)
        for entry in PROCESSORS:
            limits = processor_limits(entry.make())
            whole = PictureSizer(FixedDestination(limits, NO_LINK), 1.0).reduce_pixels(frame)
            sent = {mbps: figures(entry, frame, chosen(limits, frame, mbps)) for mbps in RATES_MBPS}
            yield {
                "camera": f"{width} x {height}",
                "family": entry.name,
                "checkpoint": entry.checkpoints,
                "used": figures(entry, frame, whole),
                "sent": sent,
            }


def tables(found: list[dict[str, Any]]) -> str:
    """Return both tables as Markdown."""
    lines = []
    for camera in dict.fromkeys(row["camera"] for row in found):
        lines += [f"A frame of {camera} pixels:", ""]
        rates = " | ".join(f"s at {mbps} Mbit/s" for mbps in RATES_MBPS)
        budgets = " | ".join(f"sent at {mbps} Mbit/s" for mbps in RATES_MBPS)
        lines += [f"| family | can use | kB | image tokens | {rates} | {budgets} |", "| --- " * 10 + "|"]
        for row in (row for row in found if row["camera"] == camera):
            used = row["used"]
            times = " | ".join(f"{used[f'at_{mbps}_mbps_s']:.2f}" for mbps in RATES_MBPS)
            sent = " | ".join(
                f"{part['width']} x {part['height']}, {part['bytes'] / 1e3:.0f} kB, {part['tokens']:,}"
                for part in row["sent"].values()
            )
            size = f"{used['width']} x {used['height']}"
            whole = f"{size} | {used['bytes'] / 1e3:.0f} | {used['tokens']:,}"
            lines.append(f"| {row['family']} | {whole} | {times} | {sent} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(description="The size of pictures for each family.")
    parser.add_argument("--write", action="store_true", help=f"write the tables into {PAGE.name}")
    options = parser.parse_args()
    found = list(rows())
    text = tables(found)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        head, rest = page.split(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    else:
        print(text)
    print(json.dumps({"rows": found}))


if __name__ == "__main__":
    main()
