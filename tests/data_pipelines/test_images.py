"""Pictures of every kind that people have, and those that are refused."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from data_pipelines.shards.pictures import ImageError, decode_image, picture_size, sized_pixels
from vlp.interfaces import PixelSize

GRADIENT = np.arange(48, dtype=np.uint8).reshape(4, 12) * 5


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG put together by hand: `rows` without their filter bytes, `more` chunks before the pixels."""
    length = len(rows) // height
    unfiltered = b"".join(b"\0" + rows[n : n + length] for n in range(0, len(rows), length)) if length else b""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)), *more]
    chunks += [(b"IDAT", zlib.compress(unfiltered)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


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


def test_what_lies_under_transparent_places_is_seen() -> None:
    """As in open_clip, whose transform converts to RGB; and Pillow doesn't warn of it at every picture."""
    colours = [(10, 20, 30), (200, 100, 50), (7, 8, 9)]
    palette = (b"PLTE", bytes(v for colour in colours for v in colour))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for transparent in ([(b"tRNS", b"\xff\x00")], [(b"tRNS", b"\x00\x80\xff")], []):
            decoded = decode_image(png(3, 1, 8, 3, bytes([0, 1, 2]), palette, *transparent))
            assert [decoded.getpixel((n, 0)) for n in range(3)] == colours
        rgba = decode_image(png(2, 1, 8, 6, bytes([9, 8, 7, 0, 90, 80, 70, 128])))
        assert [rgba.getpixel((n, 0)) for n in range(2)] == [(9, 8, 7), (90, 80, 70)]
        grey = decode_image(png(2, 1, 8, 4, bytes([50, 0, 60, 255])))
        assert [grey.getpixel((n, 0)) for n in range(2)] == [(50, 50, 50), (60, 60, 60)]
        key = decode_image(png(2, 1, 8, 2, bytes([1, 2, 3, 4, 5, 6]), (b"tRNS", struct.pack(">HHH", 1, 2, 3))))
        assert [key.getpixel((n, 0)) for n in range(2)] == [(1, 2, 3), (4, 5, 6)]


@pytest.mark.parametrize(
    ("bits", "colour", "pixel", "expected"),
    [
        (16, 2, struct.pack(">HHH", 0x1234, 0xFF80, 0x00FF), (0x12, 0xFF, 0x00)),
        (16, 6, struct.pack(">HHHH", 0x1234, 0xFF80, 0x00FF, 0), (0x12, 0xFF, 0x00)),
        (16, 0, struct.pack(">H", 0xABCD), (0xAB, 0xAB, 0xAB)),
        (16, 4, struct.pack(">HH", 0xABCD, 0), (0xAB, 0xAB, 0xAB)),
        (1, 0, b"\x80", (255, 255, 255)),
        (2, 0, b"\x40", (85, 85, 85)),
        (4, 0, b"\x30", (51, 51, 51)),
    ],
)
def test_other_depths(bits: int, colour: int, pixel: bytes, expected: tuple[int, ...]) -> None:
    assert decode_image(png(1, 1, bits, colour, pixel)).getpixel((0, 0)) == expected


def test_inks_of_a_jpeg() -> None:
    """Adobe's inverted inks, with its mark, without it, and stored as YCCK (the conversion by hand)."""
    inks = Image.new("CMYK", (16, 16), (155, 127, 95, 55))
    adobe = encoded(inks, "JPEG", quality=100)
    place = adobe.index(b"Adobe")
    black = 255 - 55
    by_inks = [(255 - ink) * black / 255 for ink in (155, 127, 95)]
    unmarked = adobe[: place - 4] + adobe[place + 12 :]
    # the stored numbers, 255 less the inks, are now luma 100, blue difference 128, red difference 160
    ycck = adobe[: place + 11] + b"\2" + adobe[place + 12 :]
    of_luma = [100 + 1.402 * 32, 100 - 0.714136 * 32, 100]
    by_luma = [(255 - value) * black / 255 for value in of_luma]
    for data, expected in ((adobe, by_inks), (unmarked, by_inks), (ycck, by_luma)):
        pixel = np.array(decode_image(data).getpixel((5, 5)))
        assert np.abs(pixel - expected).max() <= 2, (pixel, expected)


def test_jpegs_of_several_kinds() -> None:
    """Progressive as baseline, a profile and a damaged one as none, of several pictures in a file the first."""
    pixels = np.random.default_rng(1).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    plain = np.asarray(decode_image(encoded(picture, "JPEG", quality=90)))
    several = [Image.fromarray(255 - pixels)]
    for kind, options in (
        ("JPEG", {"progressive": True}),
        ("JPEG", {"icc_profile": b"no profile at all" * 9}),
        ("MPO", {"save_all": True, "append_images": several}),
    ):
        data = encoded(picture, kind, quality=90, **options)
        np.testing.assert_array_equal(np.asarray(decode_image(data)), plain)
        assert picture_size(data) == ("jpg", 40, 24)
    grey = decode_image(encoded(Image.fromarray(GRADIENT), "JPEG", quality=100))
    assert grey.mode == "RGB"
    assert np.abs(np.asarray(grey).astype(int) - GRADIENT[..., None]).max() <= 2


@pytest.mark.parametrize("side", [1, 2, 7])
def test_threads_of_pixels_are_scaled_to_few(side: int) -> None:
    """However long and thin: no side of nothing, none above the longest."""
    size = PixelSize(384, 639, 32)
    for shape in ((side, 20_000), (20_000, side)):
        data = encoded(Image.new("RGB", shape[::-1], (3, 99, 201)), "PNG")
        scaled = sized_pixels(data, size)
        assert sorted(scaled.shape[:2]) == [32, 608]
        assert (scaled == (3, 99, 201)).all()


def test_exif_orientation_turns_the_picture_upright() -> None:
    picture = Image.new("RGB", (16, 8), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 8, 8))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: to be turned clockwise, left becomes top
    turned = decode_image(encoded(picture, "PNG", exif=exif))
    assert turned.size == (8, 16)
    assert turned.getpixel((4, 3)) == (255, 255, 255)
    assert turned.getpixel((4, 12)) == (0, 0, 0)


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("blue", "red")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert Image.open(io.BytesIO(data)).n_frames == 2
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


def test_other_headers_that_claim_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pixel is decoded: Pillow's decoding itself would fail the test."""

    def fail(image: Image.Image) -> None:
        raise AssertionError("decoded")

    small = Image.new("RGB", (16, 16))
    jpeg = encoded(small, "JPEG")
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg = jpeg[:frame] + struct.pack(">HH", 65_000, 65_000) + jpeg[frame + 4 :]
    animated = encoded(small, "WEBP", save_all=True, append_images=[Image.new("RGB", (16, 16), "red")])
    canvas = animated.index(b"VP8X") + 12
    webp = animated[:canvas] + (9_999).to_bytes(3, "little") * 2 + animated[canvas + 6 :]
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    for data in (jpeg, webp, png(100_000, 100_000, 16, 6, b"")):
        for read in (decode_image, picture_size):
            with pytest.raises(ImageError, match="more than 64000000 pixels"):
                read(data)


def test_sizes_from_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the decoded picture, and its kind that of its bytes; nothing is decoded."""
    cases = []
    for kind in ("PNG", "JPEG", "WEBP"):
        for orientation in (None, 1, 3, 5, 6, 7, 8):
            exif = Image.Exif()
            if orientation is not None:
                exif[0x0112] = orientation
            data = encoded(Image.new("RGB", (30, 20)), kind, exif=exif)
            upright = decode_image(data)
            cases.append((data, ({"JPEG": "jpg"}.get(kind, kind.lower()), upright.height, upright.width)))
    assert {case[1][1:] for case in cases} == {(20, 30), (30, 20)}
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    assert [picture_size(data) for data, _ in cases] == [expected for _, expected in cases]


def test_a_jpeg_that_is_cut_short() -> None:
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)), "JPEG")
    for data in (whole[:-100], whole[: len(whole) // 2]):
        assert picture_size(data) == ("jpg", 64, 64)
        with pytest.raises(ImageError, match="cannot be decoded"):
            decode_image(data)
    with pytest.raises(ImageError):
        decode_image(whole[:20])


def test_what_is_no_picture_is_refused() -> None:
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)), "PNG")
    for data in (b"", b"<html><body>Not found</body></html>", encoded(Image.new("L", (4, 4)), "PPM")):
        with pytest.raises(ImageError, match="no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"):
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
