"""The largest picture that an image processor of Transformers can use, from its settings.

The classes share names of settings, not their meaning: `size` is a square, a shortest or longest edge, or
two areas. Each kind is recognised by the settings that only it has, so a new family of a known kind needs
nothing. `test/models/test_image_limits.py` compares them with what the processors make of pictures.
"""

from __future__ import annotations

import itertools
from typing import Any

from vlm_spec_decode.core.types import MAX_BOXES, MAX_SIDE_PX, UNKNOWN_LIMITS, ImageLimits, Size


def processor_limits(processor: Any, max_image_tokens: int = 0) -> ImageLimits:
    """Return the largest picture of which `processor` keeps the detail; unknown for another kind.

    `max_image_tokens` bounds pictures whose number of tokens grows with their area (0: no bound).
    """
    size = _settings(processor, "size")
    patch, merge = _number(processor, "patch_size"), _number(processor, "merge_size") or 1
    if grid := getattr(processor, "image_grid_pinpoints", None):
        # LLaVA-NeXT, LLaVA-OneVision: fitted into one of the canvases, [height, width] each, made of tiles.
        return _limits(inside=_widest((int(width), int(height)) for height, width in grid))
    if soft_tokens := _number(processor, "max_soft_tokens"):
        # Gemma 4: kernel² patches make a token, and the whole picture has at most so many.
        side = patch * (_number(processor, "pooling_kernel_size") or 1)
        return _limits(max_pixels=soft_tokens * side * side)
    if patch and {"shortest_edge", "longest_edge"} <= size.keys():
        # Qwen2-VL and those after it: both are areas, and merge² patches make a token.
        bound = max_image_tokens * (patch * merge) ** 2 or size["longest_edge"]
        return _limits(max_pixels=min(size["longest_edge"], bound))
    if getattr(processor, "crop_to_patches", False) and {"height", "width"} <= size.keys():
        # InternVL: squashed to a grid of at most so many tiles.
        return _limits(max_pixels=_number(processor, "max_patches") * size["height"] * size["width"])
    if getattr(processor, "do_image_splitting", False) or "longest_edge" in size:
        # SmolVLM, Idefics: brought to this longest edge, then cut into tiles.
        longest = size.get("longest_edge", 0)
        return _limits(inside=((longest, longest),))
    return _square(processor, size)


def _square(processor: Any, size: dict[str, int]) -> ImageLimits:
    """Return the limits of a processor that makes one square of every picture."""
    crop = _settings(processor, "crop_size") if getattr(processor, "do_center_crop", False) else {}
    if edge := size.get("shortest_edge", 0):
        if getattr(processor, "do_pad", False):
            return _limits(inside=((edge, edge),))  # LLaVA-1.5 with bars: the longest edge fills the square
        # CLIP: the shortest edge is brought to this, then the middle is cut out.
        return _limits(cover=(max(edge, crop.get("width", 0)), max(edge, crop.get("height", 0))))
    if getattr(processor, "do_pan_and_scan", False):
        # Gemma 3 with crops: each of at most so many becomes a square of its own.
        crops = max(1, _number(processor, "pan_and_scan_max_num_crops"))
        return _limits(max_pixels=crops * size.get("height", 0) * size.get("width", 0))
    if {"height", "width"} <= size.keys():
        return _limits(cover=(size["width"], size["height"]))  # SigLIP, Gemma 3: squashed
    return UNKNOWN_LIMITS


def _limits(max_pixels: int = 0, inside: tuple[Size, ...] = (), cover: Size | None = None) -> ImageLimits:
    """Return limits; unknown ones where the settings name no size that a picture could have."""
    try:
        return ImageLimits(max_pixels=min(max_pixels, MAX_SIDE_PX**2), inside=inside, cover=cover)
    except ValueError:
        return UNKNOWN_LIMITS


def _widest(boxes: Any) -> tuple[Size, ...]:
    """Return the boxes that are in no other one: those decide which picture is the largest."""
    kept = sorted(set(boxes), reverse=True)
    inner = {
        small
        for small, large in itertools.permutations(kept, 2)
        if small[0] <= large[0] and small[1] <= large[1]
    }
    return tuple(box for box in kept if box not in inner)[:MAX_BOXES]


def _settings(processor: Any, name: str) -> dict[str, int]:
    """Return the numbers of a size that a processor has, a `SizeDict` or a mapping, by their names."""
    found = getattr(processor, name, None) or {}
    return {key: int(value) for key, value in dict(found).items() if isinstance(value, int)}


def _number(processor: Any, name: str) -> int:
    """Return a whole number that a processor has, of a square size its side; 0 if it has none."""
    found = getattr(processor, name, None)
    if isinstance(found, int):
        return found
    return _settings(processor, name).get("height", 0) if found else 0
