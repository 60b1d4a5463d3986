"""Tars of pictures and captions as img2dataset writes them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image
from webdataset.writer import TarWriter


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (20 + number % 5, 30, 3), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def picture(number: int) -> bytes:
    return encoded(pixels(number), "JPEG", quality=95)


def caption(number: int) -> str:
    return f"picture number {number}, it's Zoë's"


def write_like_img2dataset(folder: Path, shard: int, count: int = 3) -> Path:
    """A tar with the table and the statistics that it writes beside it (img2dataset/writer.py)."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    with (folder / f"{shard:05d}.tar").open("wb") as file:
        tar = TarWriter(file)
        for n in range(count):
            number = shard * 100 + n
            row = {
                "caption": caption(number),
                "url": f"http://example.org/{number}.jpg",
                "key": f"{shard:05d}{n:04d}",
                "status": "success",
                "error_message": None,
                "width": 30,
                "height": 20 + number % 5,
                "exif": "{}",
                "objects": ["names that mean something else here"],
            }
            sample = {"__key__": row["key"], "jpg": picture(number), "txt": caption(number)}
            tar.write({**sample, "json": json.dumps(row, indent=4)})
            rows.append(row)
        tar.close()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{shard:05d}.parquet")
    (folder / f"{shard:05d}_stats.json").write_text('{"successes": 3}')
    return folder / f"{shard:05d}.tar"


def write_members(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar of named members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
