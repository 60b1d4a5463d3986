"""Encoded pictures to RGB, safely."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vlp.distributed import derive_seed
from vlp.interfaces import PixelSize, SquareSize

MOST_PIXELS = 64_000_000  # width x height; a decompression bomb is refused from its header
MOST_FILE_BYTES = 256 << 20  # of a picture's file
MOST_ELONGATED = 16  # longer to shorter side; more is cut off at both ends before a centre crop
KINDS = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
if find_spec("PIL.AvifImagePlugin"):  # since Pillow 11.3
    KINDS["AVIF"] = "avif"
FORMATS = tuple(name for name in KINDS if name != "MPO")  # to Pillow that is JPEG until it is opened
ORIENTATION = 0x0112  # EXIF's tag; 5 to 8: the picture lies on its side


class ImageError(ValueError):
    """A picture cannot be used; the message is a short phrase that says why."""


def decode_image(data: bytes, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """A PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF picture as RGB, upright by its EXIF orientation; of an animation the
    first frame.

    Sixteen-bit grey is scaled to eight. Transparency is dropped, as `PIL.Image.convert("RGB")` does and open_clip with
    it: what a picture stores under transparent places is seen. Colour profiles are not applied, nor are they there.

    Raises:
        ImageError: not such a picture, damaged, or of more than `most_pixels` (told before decoding).
    """
    with _opened(data, most_pixels) as image:
        image.load()
        return upright_rgb(image)


def upright_rgb(image: Image.Image) -> Image.Image:
    """A decoded picture as `decode_image` gives it."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        upright = Image.fromarray((np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    upright.info.pop("transparency", None)  # Pillow would search the palette for it, and warn of what it drops
    return upright.convert("RGB")


def picture_size(data: bytes, most_pixels: int = MOST_PIXELS) -> tuple[str, int, int]:
    """Kind (one of `IMAGE_FORMATS`), height and width of a picture as `decode_image` gives it; nothing is decoded but
    TIFF, of which versions of Pillow differ in when they turn it.

    Raises:
        ImageError: its header is damaged or of another kind, or says more than `most_pixels`.
    """
    with _opened(data, most_pixels) as image:
        kind = KINDS[image.format or ""]  # a JPEG of several pictures is "MPO"
        if kind == "tif":
            image.load()
            upright = ImageOps.exif_transpose(image)
            return kind, upright.height, upright.width
        # a PNG's EXIF may come after its pixels, which would be decoded to find it
        turned = (kind != "png" or "exif" in image.info) and image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
        return (kind, image.width, image.height) if turned else (kind, image.height, image.width)


def orientation(data: bytes) -> int:
    """By which of EXIF's orientations (1 to 8) `decode_image` turns a picture; 1: it stays as it is stored. Of TIFF it
    is 1 too: what reads one turns it at once, so nobody sees its pixels as they are stored.

    Raises:
        ImageError: as `decode_image`.
    """
    with _opened(data, MOST_PIXELS) as image:
        if KINDS[image.format or ""] == "png":
            image.load()  # its EXIF may come after its pixels
        found: Any = 1 if image.format == "TIFF" else image.getexif().get(ORIENTATION)
        return int(found) if found in range(1, 9) else 1


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
        if data[4:12] in (b"ftypavif", b"ftypavis"):
            raise ImageError("image is AVIF, which this Pillow can't read (11.3 and newer can)") from error
        raise ImageError("image is no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"image has more than {most_pixels} pixels") from error
    except ImageError:
        raise
    except Exception as error:  # Pillow raises errors of many kinds on broken files and on odd EXIF tags
        raise ImageError("image cannot be decoded") from error


def sized_pixels(data: bytes | Image.Image, size: PixelSize | SquareSize, seed: int | None = None) -> np.ndarray:
    """A picture, encoded or RGB, in the size that a model asks for; see `scaled_pixels` and `square_pixels`.

    seed: of what is random in training; None: as in evaluation.
    """
    image = data if isinstance(data, Image.Image) else decode_image(data)
    if seed is not None and (size.rand_augment is not None or size.flip):
        image = augmented(image, size.rand_augment, size.flip, derive_seed("augment", seed))
    return square_pixels(image, size, seed) if isinstance(size, SquareSize) else scaled_pixels(image, size)


def augmented(image: Image.Image, rand_augment: tuple[int, int] | None, flip: bool, seed: int) -> Image.Image:
    """An RGB picture, augmented by what the seed says: mirrored or not, then by torchvision's RandAugment.

    Its operations are those of the paper (Cubuk et al. 2020) without inverting colours and cutting out, as in ViLT
    (vilt/transforms/randaug.py), which has SolarizeAdd besides, and augments before it scales, as is done here.

    Args:
        rand_augment: operations and their magnitude, from 0 to 30; None: none.
        flip: every other picture is mirrored.
    """
    import torch  # both take seconds, and most models augment nothing
    from torchvision.transforms import v2

    steps: list[Any] = [v2.RandomHorizontalFlip()] if flip else []
    if rand_augment is not None:
        operations, magnitude = rand_augment
        steps.append(v2.RandAugment(operations, magnitude))
    with torch.random.fork_rng(devices=[]):  # they draw from PyTorch's own generator
        torch.default_generator.manual_seed(seed)
        found: Image.Image = v2.Compose(steps)(image)
    return found


def scaled_pixels(image: Image.Image, size: PixelSize) -> np.ndarray:
    """An RGB picture as a model sees it: scaled by bicubic interpolation, uint8 [h, w, 3].

    Pillow scales in integers, so the pixels are the same on every machine.
    """
    height, width = size.of(image.height, image.width)
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))


def square_pixels(image: Image.Image, square: SquareSize, seed: int | None = None) -> np.ndarray:
    """An RGB picture as a dual encoder sees it: made a square by bicubic interpolation, uint8 [s, s, 3].

    seed: of the random crop, if the size asks for one; None: as in evaluation.

    Source: torchvision's Resize, CenterCrop and RandomResizedCrop, as open_clip uses them.
    """
    width, height, size = image.width, image.height, square.size
    if square.random_crop is not None and seed is not None:
        image = image.crop(random_box(width, height, square.random_crop, np.random.default_rng(seed)))
    elif square.resize == "shortest":
        short, long = sorted((width, height))
        if long > MOST_ELONGATED * short:  # a picture of 1 x 60,000 pixels would become a giant when it is scaled
            kept = MOST_ELONGATED * short
            left, top = max(width - kept, 0) // 2, max(height - kept, 0) // 2
            image = image.crop((left, top, left + min(width, kept), top + min(height, kept)))
            width, height = image.size
        wide, high = int(size * width / short), int(size * height / short)
        image = image.resize((wide, high), Image.Resampling.BICUBIC)
        left, top = round((wide - size) / 2), round((high - size) / 2)
        return np.array(image.crop((left, top, left + size, top + size)))
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC))


def random_box(
    width: int, height: int, shares: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A box (left, top, right, bottom) at a random place, whose area is one of these shares of the picture's and whose
    ratio of sides is from 3/4 to 4/3; the largest such box in the middle if none fits in ten draws.

    Source: torchvision, RandomResizedCrop.get_params.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*shares)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, max(round(height * 4 / 3), 1)), min(height, max(round(width * 4 / 3), 1))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def cells(facts: dict[str, Any], size: PixelSize | SquareSize) -> int:
    """Cells of a scaled picture; the most there can be if the facts don't say its size."""
    height, width = facts.get("height"), facts.get("width")
    known = isinstance(height, int) and isinstance(width, int) and min(height, width) > 0
    return size.cells(height, width) if known else size.cells(None, None)
