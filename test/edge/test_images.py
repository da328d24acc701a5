"""Image files for `vsd ask --image`: any format, the way up that the file asks for, small enough to go up."""

import io

import numpy as np
import pytest
from PIL import Image as PilImage

from test.core.encodings import picture, pixels_of, shows_it
from vlm_spec_decode.core.errors import ImageError
from vlm_spec_decode.edge.image_upload import UPLINK_WIDTH_PX, for_uplink, load_image


def saved(path, pixels, orientation=1, **options):
    exif = PilImage.Exif()
    exif[0x0112] = orientation
    PilImage.fromarray(pixels).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp", "a.tiff", "a.gif", "no_suffix"])
def test_files_of_every_common_format(tmp_path, name):
    path = tmp_path / name
    PilImage.fromarray(picture()).save(path, **({} if path.suffix else {"format": "PNG"}))
    image = load_image(path)
    assert (image.width, image.height) == (64, 48)
    assert shows_it(pixels_of(image.jpeg), within=40)


@pytest.mark.parametrize("size", [(64, 48), (1280, 720)])
def test_a_photograph_that_was_taken_sideways_is_turned(tmp_path, size):
    upright = picture(*size)
    sideways = np.rot90(upright)  # turned to the left when it is stored: orientation 6 turns it back
    image = load_image(saved(tmp_path / "a.jpg", sideways, 6, quality=95))
    assert image.width == min(size[0], UPLINK_WIDTH_PX)
    assert shows_it(pixels_of(image.jpeg))


def test_a_small_upright_jpeg_is_passed_on_byte_for_byte(tmp_path):
    data = saved(tmp_path / "a.jpg", picture()).read_bytes()
    assert for_uplink(data).jpeg is data


def test_what_is_no_picture_is_named_with_its_file(tmp_path):
    buffer = io.BytesIO()
    PilImage.fromarray(picture()).save(buffer, "PNG")
    for number, data in enumerate((b"", b"hello", buffer.getvalue()[:60], b"\0\0\0\1video")):
        path = tmp_path / f"{number}.png"
        path.write_bytes(data)
        with pytest.raises(ImageError, match=str(path)) as error:
            load_image(path)
        assert "\n" not in str(error.value)
    with pytest.raises(ImageError, match="No such file"):
        load_image(tmp_path / "nowhere.png")
