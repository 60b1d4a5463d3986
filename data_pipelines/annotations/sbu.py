"""SBU Captions: a million pictures of Flickr with what their owners wrote of them.

Files (www.cs.rice.edu/~vo9/sbucaptions): `sbu-captions-all.json`, an object with the lists `image_urls` and `captions`;
or `SBU_captioned_photo_dataset_urls.txt` and `SBU_captioned_photo_dataset_captions.txt`, of which lines belong
together. The pictures are downloaded by other tools. How they are named (`web_pictures` says more): `row`,
00000012.jpg; `crc32`, the CRC-32 of the address; `row_crc32`, 12_CRC; `url`, what stands behind the address's last
slash; `img2dataset`, as in the tables that it writes beside its folders (--output_format files).
"""

from __future__ import annotations

from pathlib import Path

from data_pipelines.annotations.files import AnnotationError, LeftOut, read_json, read_lines
from data_pipelines.annotations.pictures import Annotations
from data_pipelines.annotations.web_pictures import web_pictures
from data_pipelines.shards.facts import is_unicode
from data_pipelines.shards.format import Manifest


def read_sbu(captions: Path, urls: Path | None, images: Path, naming: str) -> Annotations:
    """The rows of the files, in order.

    Args:
        captions: the JSON file, or the captions as text.
        urls: the addresses as text; None for the JSON file, which has them.
        images: the folder of the pictures.
        naming: how they are named.

    Raises:
        FileNotFoundError: a file is missing.
        AnnotationError: one is not of this layout, or they have not as many captions as addresses.
    """
    if urls is None:
        values = read_json(captions)
        texts, addresses = (_texts(captions, values.get(name), name) for name in ("captions", "image_urls"))
    else:
        texts, addresses = ([line for _, line in read_lines(path)] for path in (captions, urls))
    if len(texts) != len(addresses):
        raise AnnotationError(
            f"{captions} has {len(texts)} captions, but there are {len(addresses)} addresses"
            f" in {urls or captions}; the files do not belong together, or one is cut short"
        )
    rows = [(text, address.strip()) for text, address in zip(texts, addresses, strict=True)]
    if not any("://" in address for _, address in rows):
        raise AnnotationError(f"{urls or captions} has no addresses; are the two files the right way round?")
    left_out: list[LeftOut] = []
    manifest = Manifest("sbu", 0, [], "", "captions and pictures: each its own, of Flickr")
    return Annotations(manifest, web_pictures("sbu", rows, naming, images, left_out), left_out)


def _texts(path: Path, values: object, name: str) -> list[str]:
    if not isinstance(values, list):
        raise AnnotationError(f"{path} is not in the official layout: it has no list {name!r}")
    for number, value in enumerate(values):
        if not is_unicode(value):
            raise AnnotationError(f"{path}: {name}[{number}] is no text in Unicode")
    return values
