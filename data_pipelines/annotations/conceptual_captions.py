"""Conceptual Captions: pictures of the web with their cleaned alternative texts.

Files (ai.google.com/research/ConceptualCaptions/download): `Train_GCC-training.tsv` (3,318,333 rows; it takes 1.5 GB of
memory) and `Validation_GCC-1.1.0-Validation.tsv` (15,840), one row a line: caption, tabulator, address; no header.
(Conceptual 12M, `cc12m.tsv`, has the columns the other way round and is refused.) The pictures are downloaded by other
tools; of many addresses nothing is left. How they are named (`web_pictures` says more): `row`, 00000012.jpg; `crc32`,
the CRC-32 of the address; `row_crc32`, 12_CRC; `url`, what stands behind the address's last slash; `img2dataset`, as in
the tables that it writes beside its folders (--output_format files).
"""

from __future__ import annotations

from pathlib import Path

from data_pipelines.annotations.files import AnnotationError, LeftOut, read_lines
from data_pipelines.annotations.pictures import Annotations
from data_pipelines.annotations.web_pictures import web_pictures
from data_pipelines.shards.format import Manifest


def read_conceptual_captions(captions: Path, images: Path, naming: str) -> Annotations:
    """The rows of a file, in order.

    Args:
        captions: the file.
        images: the folder of the pictures.
        naming: how they are named.

    Raises:
        FileNotFoundError: the file is missing.
        AnnotationError: it is not of this layout.
    """
    rows = []
    for number, line in read_lines(captions):
        if line.strip():
            columns = line.split("\t")
            if len(columns) < 2 or "://" not in columns[1]:
                raise AnnotationError(f"{captions}, line {number} is not a caption, a tabulator and an address")
            rows.append((columns[0], columns[1].strip()))
    left_out: list[LeftOut] = []
    manifest = Manifest("conceptual_captions", 0, [], "", "captions: Google's terms; pictures: each its own")
    return Annotations(manifest, web_pictures("cc", rows, naming, images, left_out), left_out)
