"""Join what was filmed at the same time, side by side, into one GIF: the console beside RViz, for the README.

    python benchmarks/demo_gif.py film URL FOLDER --seconds 20     film a page, a picture each 0.2 s
    python benchmarks/demo_gif.py join OUT.gif LEFT RIGHT …        join folders or GIFs

A folder holds pictures whose names are milliseconds since the same moment, such as `001200.png`; any recorder
of a window (RViz) can write them. What is joined has one height; colours and size are reduced until the file
is at most 3 MB.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import time
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from PIL import Image as PilImage
from PIL import ImageSequence

MAX_BYTES = 3_000_000
HEIGHT_PX, PERIOD_MS = 540, 200
COLOURS, SHRINKS = (128, 64, 32), (1.0, 0.85, 0.7, 0.55, 0.4)

Film = list[tuple[int, PilImage.Image]]
"""Pictures with their milliseconds, in order."""


def read_film(path: Path) -> Film:
    """Read a folder of pictures or a GIF. Raises SystemExit if there is none."""
    if path.is_dir():
        files = sorted(
            (file for file in path.iterdir() if file.stem.isdigit()), key=lambda file: int(file.stem)
        )
        film = [(int(file.stem), PilImage.open(file).convert("RGB")) for file in files]
    else:
        film, at_ms = [], 0
        with PilImage.open(path) as gif:
            for frame in ImageSequence.Iterator(gif):
                film.append((at_ms, frame.convert("RGB")))
                at_ms += int(frame.info.get("duration", PERIOD_MS))
    if not film:
        raise SystemExit(f"{path} holds no pictures")
    return film


def joined(
    films: Sequence[Film], height_px: int = HEIGHT_PX, period_ms: int = PERIOD_MS
) -> list[PilImage.Image]:
    """Return the films side by side, each at its newest picture of the moment, until the last one ends."""
    end_ms = max(film[-1][0] for film in films)
    pictures = []
    for at_ms in range(0, end_ms + 1, period_ms):
        row = []
        for film in films:
            picture = film[max(0, bisect_right([ms for ms, _ in film], at_ms) - 1)][1]
            row.append(picture.resize((round(picture.width * height_px / picture.height), height_px)))
        page = PilImage.new("RGB", (sum(each.width for each in row), height_px), "white")
        left = 0
        for each in row:
            page.paste(each, (left, 0))
            left += each.width
        pictures.append(page)
    return pictures


def encoded(
    pictures: Sequence[PilImage.Image], max_bytes: int = MAX_BYTES, period_ms: int = PERIOD_MS
) -> bytes:
    """Return the GIF of the most pixels and colours that is small enough. Raises SystemExit if none is."""
    for shrink in SHRINKS:
        for colours in COLOURS:
            size = tuple(round(shrink * side) for side in pictures[0].size)
            small = [each.resize(size).quantize(colours) for each in pictures]
            buffer = io.BytesIO()
            small[0].save(
                buffer,
                "GIF",
                save_all=True,
                append_images=small[1:],
                duration=period_ms,
                loop=0,
                optimize=True,
            )
            if buffer.tell() <= max_bytes:
                return buffer.getvalue()
    raise SystemExit(f"{len(pictures)} pictures do not fit into {max_bytes} bytes; film a shorter time")


def film_page(url: str, folder: Path, seconds: float, width: int, height: int) -> None:
    """Film a page in a Chromium without a window."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(url)
        began_s = time.monotonic()
        while (spent_s := time.monotonic() - began_s) < seconds:
            page.screenshot(path=str(folder / f"{round(1000 * spent_s):06d}.png"))
            time.sleep(max(0.0, PERIOD_MS / 1000 - (time.monotonic() - began_s - spent_s)))
        browser.close()


def main() -> int:
    """Film or join."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    film = commands.add_parser("film", help="film a page")
    film.add_argument("url")
    film.add_argument("folder", type=Path)
    film.add_argument("--seconds", type=float, default=20.0)
    film.add_argument("--size", type=int, nargs=2, default=(960, 720), metavar=("WIDTH", "HEIGHT"))
    join = commands.add_parser("join", help="join folders or GIFs side by side")
    join.add_argument("out", type=Path)
    join.add_argument("parts", type=Path, nargs="+")
    join.add_argument("--max-bytes", type=int, default=MAX_BYTES)
    options = parser.parse_args()
    if options.command == "film":
        film_page(options.url, options.folder, options.seconds, *options.size)
        return 0
    pictures = joined([read_film(part) for part in options.parts])
    options.out.write_bytes(encoded(pictures, options.max_bytes))
    print(f"{options.out}: {len(pictures)} pictures, {options.out.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
