"""What image processors can use, by their settings, against what they make of pictures."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image as PilImage

from benchmarks.lib.processors import PROCESSORS, ProcessorEntry
from test.models import checkpoints
from vlm_spec_decode.core.types import UNKNOWN_LIMITS, Image, ImageLimits, Observation
from vlm_spec_decode.models.families.image_limits import processor_limits
from vlm_spec_decode.models.loader import load_model, shipped

SIZES = [(3840, 2160), (1280, 720), (1080, 1920), (3000, 700)]


def resized_pixels(processor: Any, picture: PilImage.Image) -> int:
    """Return how many pixels the processor makes of a picture, tiles and overview together."""
    return int(processor(images=picture, return_tensors="np")["pixel_values"].size)


@pytest.mark.parametrize("entry", PROCESSORS, ids=lambda entry: entry.name)
@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
def test_a_picture_of_the_useful_size_loses_nothing(entry: ProcessorEntry, size: tuple[int, int]) -> None:
    """The processor makes as many pixels of it as of the whole frame; rounding to patches may cost a row."""
    processor = entry.make()
    limits = processor_limits(processor)
    width = limits.useful_width(*size)
    picture = PilImage.new("RGB", size)
    height = round(size[1] * width / size[0])
    whole, reduced = (resized_pixels(processor, p) for p in (picture, picture.resize((width, height))))
    assert reduced >= 0.93 * whole
    assert width < size[0] or limits.useful_width(2 * size[0], 2 * size[1]) > size[0]


GROWING = [entry for entry in PROCESSORS if entry.grows]


@pytest.mark.parametrize("entry", GROWING, ids=lambda entry: entry.name)
def test_a_smaller_picture_would_lose_something(entry: ProcessorEntry) -> None:
    """In one of two shapes: where only one grid of tiles fits a shape, small pictures are enlarged to it."""
    processor, kept = entry.make(), []
    for long, short in ((4, 3), (2, 1)):
        width = min(2048, processor_limits(processor).useful_width(1500 * long, 1500 * short))
        useful, smaller = (PilImage.new("RGB", (w, w * short // long)) for w in (width, width // 2))
        kept.append(resized_pixels(processor, smaller) / resized_pixels(processor, useful))
    assert min(kept) < 0.8


def test_the_context_bounds_pictures_whose_tokens_grow() -> None:
    qwen = next(entry for entry in PROCESSORS if entry.name.startswith("Qwen2-VL")).make()
    assert processor_limits(qwen, 100).max_pixels == 100 * 28 * 28
    assert processor_limits(qwen, 10**9).max_pixels == 12_845_056


def test_the_shipped_models_get_what_they_got_before() -> None:
    for name in ("target", "draft"):
        limits = load_model(shipped(name)).card.image_limits
        assert limits == ImageLimits(cover=(128, 128))
        assert limits.useful_width(1280, 720) == 448
    assert load_model(shipped("text_target")).card.image_limits == UNKNOWN_LIMITS


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"size": None},
        {"size": {"height": 0, "width": 0}},
        {"size": {"shortest_edge": -5, "longest_edge": -5}, "patch_size": 14},
        {"size": {"longest_edge": 0}},
        {"size": {"height": "x", "width": 2.5}},
        {"image_grid_pinpoints": [[0, 0]]},
        {"max_soft_tokens": -7, "patch_size": 16},
    ],
)
def test_settings_that_make_no_sense_say_nothing(wrong: dict[str, Any]) -> None:
    assert processor_limits(SimpleNamespace(**wrong)) == UNKNOWN_LIMITS


def test_crops_of_a_long_picture_are_worth_more_pixels() -> None:
    made = SimpleNamespace(
        size={"height": 896, "width": 896}, do_pan_and_scan=True, pan_and_scan_max_num_crops=4
    )
    assert processor_limits(made) == ImageLimits(max_pixels=4 * 896 * 896)


@pytest.mark.parametrize("make", [checkpoints.qwen2_vl, checkpoints.qwen3_vl, checkpoints.gemma3])
def test_a_checkpoint_says_what_it_can_use_and_a_picture_of_that_size_fits_its_context(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    model = load_model(make(tmp_path))
    limits = model.card.image_limits
    assert limits.is_known
    width = limits.useful_width(1280, 720)
    frame = Image(checkpoints.jpeg(width, round(width * 9 / 16)), width, round(width * 9 / 16))
    context = model.open(Observation(frame, "go"))
    assert context.score(()).shape[0] == 1
    context.close()


def test_the_widest_canvases_are_kept() -> None:
    grid = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
    made: Callable[..., Any] = SimpleNamespace
    assert processor_limits(made(image_grid_pinpoints=grid)).inside == ((2304, 2304),)


ROW = re.compile(
    r"^\| (?P<name>[^|]+) \| (?P<width>\d+) x (?P<height>\d+) \| \d+ \| (?P<tokens>[\d,]+) \|", re.M
)


@pytest.mark.parametrize("entry", PROCESSORS, ids=lambda entry: entry.name)
def test_the_page_says_what_the_processors_do(entry: ProcessorEntry) -> None:
    """Sizes and tokens, which no JPEG library changes; `benchmarks/pictures.py --write` writes the page."""
    page = (Path(__file__).parents[2] / "docs" / "pictures.md").read_text(encoding="utf-8")
    for width, height in ((1280, 720), (1920, 1080)):
        table = page.split(f"A frame of {width} x {height} pixels:")[1].split("\n\n")[1]
        (row,) = (found for found in ROW.finditer(table) if found["name"] == entry.name)
        used = processor_limits(entry.make()).useful_width(width, height)
        size = (used, round(height * used / width))
        assert (int(row["width"]), int(row["height"])) == size
        assert int(row["tokens"].replace(",", "")) == entry.image_tokens(PilImage.new("RGB", size))
