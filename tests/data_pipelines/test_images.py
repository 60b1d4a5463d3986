"""Pictures of every kind that people have, and those that are refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_pipelines.images import ImageError, decode_image

GRADIENT = np.arange(48, dtype=np.uint8).reshape(4, 12) * 5


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_colours_and_orders_survive() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        decoded = np.asarray(decode_image(encoded(Image.fromarray(pixels), kind, **options)))
        np.testing.assert_array_equal(decoded, pixels)


def test_grey_of_eight_and_sixteen_bits_are_alike() -> None:
    eight = np.asarray(decode_image(encoded(Image.fromarray(GRADIENT), "PNG")))
    sixteen = Image.fromarray(GRADIENT.astype(np.uint16) * 257)
    assert sixteen.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(decode_image(encoded(sixteen, "PNG"))), eight)
    np.testing.assert_array_equal(eight, np.repeat(GRADIENT[..., None], 3, 2))


def test_palette_cmyk_transparency() -> None:
    red = Image.new("RGB", (6, 4), (250, 10, 10))
    for picture in (red.convert("P", palette=Image.Palette.ADAPTIVE), red.convert("RGBA")):
        assert decode_image(encoded(picture, "PNG")).getpixel((3, 2)) == (250, 10, 10)
    cmyk = decode_image(encoded(red.convert("CMYK"), "JPEG", quality=95))
    assert cmyk.mode == "RGB"
    assert np.abs(np.array(cmyk.getpixel((3, 2))) - [250, 10, 10]).max() < 12


def test_exif_orientation_turns_the_picture_upright() -> None:
    picture = Image.new("RGB", (16, 8), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 8, 8))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: to be turned clockwise, left becomes top
    turned = decode_image(encoded(picture, "PNG", exif=exif))
    assert turned.size == (8, 16)
    assert turned.getpixel((4, 3)) == (255, 255, 255)
    assert turned.getpixel((4, 12)) == (0, 0, 0)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("blue", "red")]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert decode_image(data).getpixel((0, 0)) == (0, 0, 255)


def test_one_pixel_high() -> None:
    assert decode_image(encoded(Image.new("RGB", (300, 1)), "PNG")).size == (300, 1)


def test_too_many_pixels_are_refused_before_decoding() -> None:
    """A header alone, without pixel data: decoding it would fail in another way."""
    for side in (9_000, 100_000):  # the larger one is refused by Pillow itself
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
        end = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
        with pytest.raises(ImageError, match="more than 64000000 pixels"):
            decode_image(b"\x89PNG\r\n\x1a\n" + chunk + end)
    with pytest.raises(ImageError, match="more than 47 pixels"):
        decode_image(encoded(Image.fromarray(GRADIENT), "PNG"), most_pixels=47)
    decode_image(encoded(Image.fromarray(GRADIENT), "PNG"), most_pixels=48)


def test_what_is_no_picture_is_refused() -> None:
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)), "PNG")
    for data in (b"", b"not a picture", encoded(Image.new("L", (4, 4)), "GIF")):
        with pytest.raises(ImageError, match="no PNG, JPEG or WebP"):
            decode_image(data)
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image(whole[: len(whole) // 2])


@pytest.mark.parametrize(("tag", "kind", "value"), [(259, 4, 70000), (256, 2, b"x\0\0\0"), (282, 2, b"x\0\0\0")])
def test_odd_exif_is_an_image_error(tag: int, kind: int, value: int | bytes) -> None:
    """A tag of another type than its own, beside the orientation that has pictures turned: Pillow fails in its ways."""
    number = value if isinstance(value, bytes) else struct.pack("<I", value)
    count = len(number) if isinstance(value, bytes) else 1
    entries = sorted([struct.pack("<HHII", 274, 3, 1, 6), struct.pack("<HHI", tag, kind, count) + number])
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    jpeg = io.BytesIO()
    Image.new("RGB", (4, 6)).save(jpeg, "JPEG", exif=exif)
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image(jpeg.getvalue())
