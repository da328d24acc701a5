"""A frame is decoded at most once on its way from camera to prompt; so is the small one that goes up."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator

import pytest
from PIL import Image as PilImage
from PIL import ImageFile

from test.core.encodings import picture
from vlm_spec_decode.core import images
from vlm_spec_decode.core.images import DecodedImages, file_image
from vlm_spec_decode.core.types import Image, Observation
from vlm_spec_decode.edge.image_upload import for_uplink
from vlm_spec_decode.models.loader import load_model, shipped


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[tuple[int, int]]]:
    """Pictures that Pillow has decoded, by their size."""
    counts: Counter[tuple[int, int]] = Counter()
    load = ImageFile.ImageFile.load

    def counted(self: ImageFile.ImageFile) -> object:
        # Pillow calls it for every use; the first has tiles left to decode.
        if self.tile:
            counts[self.size] += 1
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    return counts


def jpeg(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    PilImage.fromarray(picture(width, height)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        # Small enough to go up as it is: one image, one decode.
        ((320, 184), {(320, 184): 1}),
        # Made small: the camera's frame once, and what both models see once.
        ((1280, 736), {(1280, 736): 1, (448, 258): 1}),
    ],
)
def test_from_the_camera_to_the_prompt(size, wanted, decodes) -> None:
    model = load_model(shipped("draft"))
    frame = file_image(jpeg(*size))
    assert decodes == {}, "an upright JPEG is passed on as it is"
    seen = for_uplink(frame.jpeg)
    model.encoder.encode(Observation(seen, "go to the red chair"))
    model.encoder.encode(Observation(seen, "go to the blue box"))
    assert decodes == wanted


def test_the_picture_that_is_kept_is_the_one_that_would_be_decoded(monkeypatch) -> None:
    monkeypatch.setattr(images.DECODED, "_pictures", type(images.DECODED._pictures)())
    for mode in ("RGB", "L", "CMYK"):
        buffer = io.BytesIO()
        PilImage.fromarray(picture()).convert(mode).save(buffer, "JPEG")
        seen = for_uplink(buffer.getvalue())
        assert seen.jpeg == buffer.getvalue()
        assert images.DECODED._pictures[seen.digest].tobytes() == images.decode_jpeg(seen.jpeg).tobytes()


def test_only_the_newest_are_kept() -> None:
    kept = DecodedImages(capacity=2)
    shown = [Image(jpeg(16 + 8 * n, 16), 16 + 8 * n, 16) for n in range(4)]
    pictures = [kept.picture(each) for each in shown]
    assert kept.picture(shown[3]) is pictures[3]
    assert kept.picture(shown[0]) is not pictures[0]
