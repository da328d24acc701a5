"""Join what was filmed at the same time, side by side, into one GIF: the console beside RViz, for the README.

    python benchmarks/demo_gif.py film URL PAGE --say "walk to the red ball" --screen 1180x780+10+10 RVIZ
    python benchmarks/demo_gif.py join OUT.gif PAGE RVIZ

The first films a page and, from the same moment on, a part of the X screen; the second joins folders or
GIFs.

PAGE and RVIZ are folders of pictures, five a second, whose names are milliseconds since the same moment, such
as `001200.png`. What is joined has one height; colours and size are reduced until the file is at most 3 MB.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from PIL import Image as PilImage
from PIL import ImageSequence

MAX_BYTES = 3_000_000
HEIGHT_PX, PERIOD_MS = 540, 200
COLOURS, SHRINKS = (240, 128, 64), (1.0, 0.85, 0.7, 0.55, 0.4)
SAMPLES = 12
"""Pictures of a film that its palette is made from."""

SAY_S = 0.8
"""After this time an instruction is typed, and after as long again it is sent."""

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
        size = tuple(round(shrink * side) for side in pictures[0].size)
        small = [each.resize(size) for each in pictures]
        for colours in COLOURS:
            # One palette for all, undithered: what stands still has equal pixels, which cost nothing.
            palette = _palette(small, colours)
            frames = [each.quantize(palette=palette, dither=PilImage.Dither.NONE) for each in small]
            buffer = io.BytesIO()
            frames[0].save(
                buffer,
                "GIF",
                save_all=True,
                append_images=frames[1:],
                duration=period_ms,
                loop=0,
                optimize=True,
            )
            if buffer.tell() <= max_bytes:
                return buffer.getvalue()
    raise SystemExit(f"{len(pictures)} pictures do not fit into {max_bytes} bytes; film a shorter time")


def _palette(pictures: Sequence[PilImage.Image], colours: int) -> PilImage.Image:
    """Return a palette that suits all pictures: half of it the frequent colours, half of it the rare ones.

    The frequent ones alone would leave out a thin green line among so much grey; the others tint the grey.
    """
    some = pictures[:: max(1, len(pictures) // SAMPLES)]
    width, height = some[0].size
    sheet = PilImage.new("RGB", (width, height * len(some)))
    for row, each in enumerate(some):
        sheet.paste(each, (0, height * row))
    both: list[int] = []
    for method in (PilImage.Quantize.MEDIANCUT, PilImage.Quantize.MAXCOVERAGE):
        both += (sheet.quantize(colours // 2, method).getpalette() or [])[: 3 * (colours // 2)]
    palette = PilImage.new("P", (1, 1))
    palette.putpalette(both)
    return palette


def record_screen(part: str, folder: Path, seconds: float) -> subprocess.Popen[bytes]:
    """Film a part of the X screen, such as `1180x780+10+10`, with ffmpeg; return when its film has begun."""
    folder.mkdir(parents=True, exist_ok=True)
    size, left, top = part.split("+")
    grab = ["-f", "x11grab", "-draw_mouse", "0", "-framerate", str(1000 // PERIOD_MS), "-video_size", size]
    # Time in milliseconds from the first picture on, which is the file's name.
    named = ["-vf", "settb=1/1000,setpts=PTS-STARTPTS", "-enc_time_base", "1/1000", "-vsync", "vfr"]
    command = ["ffmpeg", "-loglevel", "error", *grab, "-i", f"{os.environ['DISPLAY']}+{left},{top}"]
    command += ["-t", str(seconds), *named, "-frame_pts", "1", str(folder / "%06d.png")]
    recorder = subprocess.Popen(command)
    while recorder.poll() is None and not any(folder.iterdir()):
        time.sleep(0.01)
    return recorder


def film_page(
    url: str, folder: Path, seconds: float, size: Sequence[int], say: str, screen: Sequence[str]
) -> None:
    """Film a page in a Chromium without a window; `say` is typed into it after a second.

    `screen` is a part of the screen and a folder, and is filmed from the same moment on; empty: nothing is.
    """
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        page.goto(url)
        steps: list[tuple[float, Callable[[], None]]] = []
        if say:
            page.uncheck("#approve-first")
            steps = [
                (SAY_S, lambda: page.fill("#instruction", say)),
                (2 * SAY_S, lambda: page.press("#instruction", "Enter")),
            ]
        with record_screen(screen[0], Path(screen[1]), seconds) if screen else nullcontext():
            began_s = time.monotonic()
            while (spent_s := time.monotonic() - began_s) < seconds:
                if steps and spent_s >= steps[0][0]:
                    steps.pop(0)[1]()
                picture = page.screenshot()
                # A picture shows what is there when it is done, on a busy computer a while later.
                at_ms = round(1000 * (time.monotonic() - began_s))
                (folder / f"{at_ms:06d}.png").write_bytes(picture)
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
    film.add_argument("--say", default="", metavar="TEXT", help="instruction to give on the console's page")
    film.add_argument("--screen", nargs=2, default=(), metavar=("WIDTHxHEIGHT+X+Y", "FOLDER"))
    join = commands.add_parser("join", help="join folders or GIFs side by side")
    join.add_argument("out", type=Path)
    join.add_argument("parts", type=Path, nargs="+")
    join.add_argument("--max-bytes", type=int, default=MAX_BYTES)
    options = parser.parse_args()
    if options.command == "film":
        film_page(options.url, options.folder, options.seconds, options.size, options.say, options.screen)
        return 0
    pictures = joined([read_film(part) for part in options.parts])
    options.out.write_bytes(encoded(pictures, options.max_bytes))
    print(f"{options.out}: {len(pictures)} pictures, {options.out.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
