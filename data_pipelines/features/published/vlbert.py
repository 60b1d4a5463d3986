"""VL-BERT's JSON: a file for each image, in folders or zip archives.

Keys (jackroos/VL-BERT, pretrain/data/datasets/conceptual_captions.py): image_w, image_h, num_boxes, and the base64 of
float32 arrays: boxes [R, 4] in pixels, features [R, F], and classes [R, C], the probabilities of all classes with the
background.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.features.published.record import Entry, FeatureFileError, Record, existing
from data_pipelines.features.published.uniter import npz_files
from data_pipelines.features.published.vilbert import map_record
from data_pipelines.shards.format import LARGEST_MEMBER


class VlbertReader:
    """Reads folders, files and zip archives of this form."""

    def __init__(self, files: list[Path]):
        self.files = existing(files)
        self._archives: dict[Path, zipfile.ZipFile] = {}

    def entries(self) -> Iterator[Entry]:
        """See `FeatureReader`."""
        for path in self.files:
            if path.suffix != ".zip":
                for file in npz_files([path], ".json"):
                    yield Entry(file.name, str(file), (file, None))
                continue
            for name in self._archive(path).namelist():
                if name.endswith(".json"):
                    yield Entry(name, f"{path}, file {name}", (path, name))

    def read(self, entry: Entry) -> Record:
        """See `FeatureReader`."""
        path, member = entry.place
        where = entry.where
        try:
            if member is None:
                data = path.read_bytes()
            else:
                archive = self._archive(path)
                if archive.getinfo(member).file_size > LARGEST_MEMBER:
                    raise FeatureFileError(f"{where} has more than {LARGEST_MEMBER >> 20} MiB")
                data = archive.read(member)
            values = json.loads(data)
        except FeatureFileError:
            raise
        except Exception as error:  # zipfile raises errors of many kinds on damaged archives
            told = f"{where} cannot be read as JSON ({str(error)[:99]}); it may be cut short"
            raise FeatureFileError(told) from error
        if not isinstance(values, dict):
            raise FeatureFileError(f"{where} holds a {type(values).__name__}, not a map with boxes and features")
        return map_record(where, values)

    def _archive(self, path: Path) -> zipfile.ZipFile:
        if path not in self._archives:
            try:
                self._archives[path] = zipfile.ZipFile(path)
            except Exception as error:  # as above
                raise FeatureFileError(f"{path} is no zip, or it is cut short ({error})") from error
        return self._archives[path]
