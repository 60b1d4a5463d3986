"""Encoded pictures to RGB, safely."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vlp.interfaces import PixelSize

MOST_PIXELS = 64_000_000  # width x height; a decompression bomb is refused from its header
FORMATS = ("PNG", "JPEG", "WEBP")


class ImageError(ValueError):
    """A picture cannot be used; the message is a short phrase that says why."""


def decode_image(data: bytes, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """A PNG, JPEG or WebP picture as RGB, upright by its EXIF orientation; of an animation the first frame.

    Sixteen-bit grey is scaled to eight; transparency is dropped, as `PIL.Image.convert("RGB")` does.

    Raises:
        ImageError: not such a picture, damaged, or of more than `most_pixels` (told before decoding).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns at a limit of its own; ours is checked next
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > most_pixels:
            raise ImageError(f"image has more than {most_pixels} pixels")
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            upright = Image.fromarray((np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
        return upright.convert("RGB")
    except UnidentifiedImageError as error:
        raise ImageError("image is no PNG, JPEG or WebP") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"image has more than {most_pixels} pixels") from error
    except ImageError:
        raise
    except Exception as error:  # Pillow raises errors of many kinds on broken files and on odd EXIF tags
        raise ImageError("image cannot be decoded") from error


def scaled_pixels(data: bytes, size: PixelSize) -> np.ndarray:
    """An encoded picture as a model sees it: decoded, scaled by bicubic interpolation, uint8 [h, w, 3].

    Pillow scales in integers, so the pixels are the same on every machine.

    Raises:
        ImageError: as `decode_image`.
    """
    image = decode_image(data)
    height, width = size.of(image.height, image.width)
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))
