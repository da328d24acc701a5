"""The README's film: what was filmed at the same time is side by side, small enough, in its colours."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage
from PIL import ImageDraw, ImageSequence

from test.benchmark_module import benchmark

demo_gif = benchmark("demo_gif")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
README_GIF = Path(__file__).parents[2] / "docs" / "images" / "console_rviz.gif"
GREEN = (40, 210, 70)


def frames_of(encoded: bytes) -> list[PilImage.Image]:
    with PilImage.open(io.BytesIO(encoded)) as film:
        return [frame.convert("RGB") for frame in ImageSequence.Iterator(film)]


def noise(seed: int, size: tuple[int, int] = (200, 120)) -> PilImage.Image:
    shape = (size[1], size[0], 3)
    return PilImage.fromarray(np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8))


def room(step: int) -> PilImage.Image:
    """Return much that is nearly grey with a thin green line, and something that moves."""
    random = np.random.default_rng(0)
    shades = random.integers(20, 230, (240, 320, 1)) + random.integers(-12, 12, (240, 320, 3))
    picture = PilImage.fromarray(shades.astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((10 * step, 200, 10 * step + 30, 230), fill=(230 - 9 * step, 40, 9 * step))
    pen.line((200, 20, 300, 60), fill=GREEN)
    return picture


def test_each_part_shows_its_newest_picture_of_the_moment_until_the_last_one_ends(tmp_path: Path) -> None:
    for name, pictures in {"a": {0: "red", 400: "blue"}, "b": {100: "lime", 900: "white"}}.items():
        (tmp_path / name).mkdir()
        for at_ms, colour in pictures.items():
            PilImage.new("RGB", (40, 20), colour).save(tmp_path / name / f"{at_ms:06d}.png")
    films = [demo_gif.read_film(tmp_path / name) for name in "ab"]
    pictures = demo_gif.joined(films, height_px=10, period_ms=200)
    assert len(pictures) == 5
    assert {picture.size for picture in pictures} == {(40, 10)}
    assert [picture.getpixel((5, 5)) for picture in pictures] == [(255, 0, 0)] * 2 + [(0, 0, 255)] * 3
    assert pictures[3].getpixel((35, 5)) == (0, 255, 0), "the newest one, not the next one"


def test_a_thin_line_keeps_its_colour_and_the_shades_theirs() -> None:
    pictures = [room(step) for step in range(10)]
    for meant, frame in zip(pictures, frames_of(demo_gif.encoded(pictures)), strict=True):
        shown, wanted = (np.asarray(each, dtype=int) for each in (frame, meant))
        is_line = (wanted == GREEN).all(axis=2)
        assert np.abs(shown[is_line] - GREEN).max() < 24
        assert np.abs(shown - wanted).mean() < 6


def test_what_stands_still_costs_nothing() -> None:
    once, ten = (len(demo_gif.encoded([room(step) for step in range(count)])) for count in (1, 10))
    assert ten < 1.5 * once


def test_it_shrinks_until_it_fits_and_says_when_nothing_does() -> None:
    pictures = [noise(seed) for seed in range(4)]
    whole = demo_gif.encoded(pictures)
    small = demo_gif.encoded(pictures, max_bytes=len(whole) // 2)
    assert len(small) <= len(whole) // 2
    assert frames_of(small)[0].width < 200
    with pytest.raises(SystemExit, match="film a shorter time"):
        demo_gif.encoded(pictures, max_bytes=100)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_a_page_is_filmed_while_an_instruction_is_given(tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="playwright is not installed")
    page = tmp_path / "page.html"
    page.write_text(
        "<body><input id='instruction'><input type='checkbox' id='approve-first' checked><script>"
        "document.getElementById('instruction').onkeydown = (event) => { if (event.key === 'Enter')"
        " document.body.style.background = document.getElementById('approve-first').checked"
        " ? 'red' : event.target.value }</script>"
    )
    demo_gif.film_page(page.as_uri(), tmp_path / "film", 2.5, (200, 100), "lime", ())
    film = demo_gif.read_film(tmp_path / "film")
    assert len(film) >= 4
    assert film[0][1].getpixel((100, 80)) == (255, 255, 255)
    assert film[-1][1].getpixel((100, 80)) == (0, 255, 0), "typed, sent, and no plan is shown first"


def test_the_readmes_film_is_small_and_can_be_read() -> None:
    assert README_GIF.stat().st_size <= demo_gif.MAX_BYTES
    with PilImage.open(README_GIF) as film:
        assert film.height == demo_gif.HEIGHT_PX, "not shrunk: its words can be read"
        assert film.width > 2 * film.height, "two windows"
        seconds = sum(frame.info["duration"] for frame in ImageSequence.Iterator(film)) / 1000
    assert 10 <= seconds <= 30, "from instruction to done"
