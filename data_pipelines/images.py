"""Encoded pictures to RGB, safely."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vlp.interfaces import PixelSize

MOST_PIXELS = 64_000_000  # width x height; a decompression bomb is refused from its header
FORMATS = ("PNG", "JPEG", "WEBP")
ORIENTATION = 0x0112  # EXIF's tag; 5 to 8: the picture lies on its side


class ImageError(ValueError):
    """A picture cannot be used; the message is a short phrase that says why."""


def decode_image(data: bytes, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """A PNG, JPEG or WebP picture as RGB, upright by its EXIF orientation; of an animation the first frame.

    Sixteen-bit grey is scaled to eight. Transparency is dropped, as `PIL.Image.convert("RGB")` does and open_clip with
    it: what a picture stores under transparent places is seen. Colour profiles are not applied, nor are they there.

    Raises:
        ImageError: not such a picture, damaged, or of more than `most_pixels` (told before decoding).
    """
    with _opened(data, most_pixels) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            upright = Image.fromarray((np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
        upright.info.pop("transparency", None)  # Pillow would search the palette for it, and warn of what it drops
        return upright.convert("RGB")


def picture_size(data: bytes, most_pixels: int = MOST_PIXELS) -> tuple[str, int, int]:
    """Kind (png, jpg or webp), height and width of a picture as `decode_image` gives it; nothing is decoded.

    Raises:
        ImageError: its header is damaged or of another kind, or says more than `most_pixels`.
    """
    with _opened(data, most_pixels) as image:
        kind = {"PNG": "png", "WEBP": "webp"}.get(image.format or "", "jpg")  # a JPEG of several pictures is "MPO"
        # a PNG's EXIF may come after its pixels, which would be decoded to find it
        turned = (kind != "png" or "exif" in image.info) and image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
        return (kind, image.width, image.height) if turned else (kind, image.height, image.width)


@contextmanager
def _opened(data: bytes, most_pixels: int) -> Iterator[Image.Image]:
    """A picture of which the header is read, if it says no more than `most_pixels`; every error is an ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns at a limit of its own; ours is checked next
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > most_pixels:
            raise ImageError(f"image has more than {most_pixels} pixels")
        yield image
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
