"""Camera messages of any robot in the form in which they are uploaded: small upright JPEGs.

`core.images` recognises the bytes of a message; here pictures are made small, and checked without being
decoded before they are needed.
"""

from __future__ import annotations

from typing import Any

from PIL import Image as PilImage

from vlm_spec_decode.core import pixels
from vlm_spec_decode.core.images import check_compressed, check_raw
from vlm_spec_decode.core.pixels import message_bytes
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.edge.image_upload import for_uplink, small_jpeg


def compressed(message: Any) -> Image:
    """Return the frame of a sensor_msgs/CompressedImage. Raises ImageError."""
    check_compressed(message)
    return for_uplink(message_bytes(message.data))


def raw(message: Any) -> Image:
    """Return the frame of a sensor_msgs/Image. Raises ImageError naming an encoding that is no picture."""
    if pixels.is_encoded(message):
        check_raw(message)
        return for_uplink(message_bytes(message.data))
    return small_jpeg(PilImage.fromarray(pixels.to_rgb(message)))
