"""The way out: regions of a data set in the forms that others' code reads.

Streams one sample at a time. No pickle is written: ViLBERT's LMDB is not among the forms (`bottom_up` is what its own
script takes), hy5's map of images to rows is a JSON, and values of UNITER's LMDB are compressed `.npz`.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipelines.features.published.join import canonical_stem
from data_pipelines.features.published.record import FeatureFileError
from data_pipelines.shards.facts import listed
from data_pipelines.shards.format import Manifest, RegionArrays
from data_pipelines.shards.reader import ShardReader

MAP_SIZE = 1 << 40  # bytes of addresses that an LMDB may take; the file has what it needs


@dataclass
class Item:
    """What is written of a sample. `name`: the image's, without an ending. `size`: width and height, or None."""

    name: str
    regions: RegionArrays
    size: tuple[int, int] | None
    facts: dict[str, Any]
    manifest: Manifest

    @property
    def shares(self) -> np.ndarray:
        """Boxes as shares, float32 [R, 4]."""
        return self.regions.boxes.astype(np.float32)

    @property
    def pixels(self) -> np.ndarray:
        """Boxes in pixels, float32 [R, 4].

        Raises:
            FeatureFileError: nothing says how large the picture is.
        """
        return (self.regions.boxes.astype(np.float64) * np.array([*self.sides, *self.sides])).astype(np.float32)

    @property
    def sides(self) -> tuple[int, int]:
        """Width and height.

        Raises:
            FeatureFileError: nothing says it.
        """
        if self.size is None:
            raise FeatureFileError(
                f"image {self.name}: this form has boxes in pixels, and the sample has no width and height"
            )
        return self.size

    @property
    def places(self) -> np.ndarray:
        """Corners as shares, width and height, float32 [R, 6]."""
        shares = self.shares
        return np.concatenate([shares, shares[:, 2:] - shares[:, :2]], 1)

    @property
    def scores(self) -> np.ndarray:
        """Class scores [R, C].

        Raises:
            FeatureFileError: there are none.
        """
        if self.regions.scores is None:
            raise FeatureFileError(f"image {self.name}: this form has class scores, and the regions have none")
        return self.regions.scores

    def classes(self) -> tuple[np.ndarray, np.ndarray]:
        """Class numbers as published, else without the background, int64 [R]; and confidences float32 [R]."""
        confidences = listed(self.facts, "region_confidences") or self.scores[:, 1:].max(1)
        numbers = listed(self.facts, "region_classes") or self.scores[:, 1:].argmax(1)
        return np.array(numbers, np.int64), np.array(confidences, np.float32)

    def attributes(self) -> tuple[np.ndarray, np.ndarray]:
        """The same of attributes."""
        scores = self.regions.attribute_scores
        if scores is None:
            raise FeatureFileError(f"image {self.name}: this form has attributes, and the regions have none")
        confidences = listed(self.facts, "region_attribute_confidences") or scores.max(1)
        numbers = listed(self.facts, "region_attributes") or scores.argmax(1)
        return np.array(numbers, np.int64), np.array(confidences, np.float32)

    def names(self) -> list[str]:
        """Names of the regions' classes, "" where there is none; empty if nothing is named."""
        names = [str(name) for name in listed(self.facts, "region_names")]
        if names or self.regions.scores is None:
            return names
        return [self.manifest.class_names[number + 1] for number in self.regions.scores[:, 1:].argmax(1)]


class _Writer(Protocol):
    def add(self, item: Item) -> None: ...


def _text(array: np.ndarray, dtype: str) -> str:
    return base64.b64encode(array.astype(dtype).tobytes()).decode()


class _BottomUp:
    """LXMERT's ten columns if there are classes and attributes; else six, and class scores if there are such."""

    def __init__(self, out: Path, manifest: Manifest, counts: np.ndarray, stack: ExitStack):
        self.file = stack.enter_context(out.open("w", newline="\n"))
        self.manifest = manifest

    def add(self, item: Item) -> None:
        rows = len(item.regions.boxes)
        boxes, features = _text(item.pixels, "<f4"), _text(item.regions.features, "<f4")
        (width, height), values = item.sides, [item.name]
        if self.manifest.class_names and self.manifest.attribute_names:
            parts = zip((*item.classes(), *item.attributes()), ("<i8", "<f4", "<i8", "<f4"), strict=True)
            values += [str(height), str(width), *(_text(a, dtype) for a, dtype in parts), str(rows), boxes, features]
        else:
            scores = [_text(item.scores, "<f4")] if self.manifest.class_names else []
            values += [str(width), str(height), str(rows), boxes, features, *scores]
        self.file.write("\t".join(values) + "\n")


def _npz_of(item: Item) -> bytes:
    with np.errstate(over="ignore"):  # which is refused below
        features = item.regions.features.astype(np.float16)
    if not np.isfinite(features).all():
        raise FeatureFileError(
            f"image {item.name}: this form has float16, which a feature of size"
            f" {float(np.abs(item.regions.features).max())} does not fit; take a form with float32, as"
            " arrays or bottom_up"
        )
    arrays = {"norm_bb": item.places.astype(np.float16), "features": features}
    if item.regions.scores is not None:
        arrays |= {"conf": item.classes()[1].astype(np.float16), "soft_labels": item.scores.astype(np.float16)}
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


class _Uniter:
    """A folder with an `.npz` for each image."""

    def __init__(self, out: Path, manifest: Manifest, counts: np.ndarray, stack: ExitStack):
        out.mkdir()
        self.out = out

    def add(self, item: Item) -> None:
        (self.out / f"{item.name}.npz").write_bytes(_npz_of(item))


class _UniterLmdb:
    """An LMDB of compressed `.npz`, with the key `__keys__`."""

    def __init__(self, out: Path, manifest: Manifest, counts: np.ndarray, stack: ExitStack):
        try:
            import lmdb
        except ModuleNotFoundError as error:
            raise FeatureFileError("this form needs a package: pip install 'vlp[features]'") from error
        self.environment = stack.enter_context(lmdb.open(str(out), map_size=MAP_SIZE))
        self.keys: list[str] = []
        stack.callback(self._put_keys)

    def _put_keys(self) -> None:
        self._put("__keys__", json.dumps(self.keys).encode())
        self.environment.sync(True)

    def _put(self, key: str, value: bytes) -> None:
        with self.environment.begin(write=True) as transaction:
            transaction.put(key.encode(), value)

    def add(self, item: Item) -> None:
        self.keys.append(f"{item.name}.npz")
        self._put(self.keys[-1], _npz_of(item))


class _Oscar:
    """A folder with features.tsv, features.lineidx and, where regions are named, predictions.tsv."""

    def __init__(self, out: Path, manifest: Manifest, counts: np.ndarray, stack: ExitStack):
        out.mkdir()
        self.features = stack.enter_context((out / "features.tsv").open("wb"))
        self.index = stack.enter_context((out / "features.lineidx").open("w", newline="\n"))
        self.labels, self.stack = out / "predictions.tsv", stack
        self.labelled: Any = None

    def add(self, item: Item) -> None:
        numbers = np.concatenate([item.regions.features.astype(np.float32), item.places], 1)
        said = json.dumps({"num_boxes": len(numbers), "features": _text(numbers, "<f4")})
        self.index.write(f"{self.features.tell()}\n")
        self.features.write(f"{item.name}\t{said}\n".encode())
        names = item.names()
        if not names:
            return
        if self.labelled is None:
            self.labelled = self.stack.enter_context(self.labels.open("w", encoding="utf-8", newline="\n"))
        sure = listed(item.facts, "region_confidences")
        if not sure:
            sure = [1.0] * len(names) if item.regions.scores is None else item.classes()[1].tolist()
        rects = item.pixels.tolist()
        objects = [
            {"class": name, "conf": conf, "rect": rect}
            for name, conf, rect in zip(names, sure, rects, strict=True)
            if name
        ]
        width, height = item.sides
        said = json.dumps({"image_w": width, "image_h": height, "objects": objects})
        self.labelled.write(f"{item.name}\t{said}\n")


class _Vlbert:
    """A folder with a JSON for each image."""

    def __init__(self, out: Path, manifest: Manifest, counts: np.ndarray, stack: ExitStack):
        out.mkdir()
        self.out = out

    def add(self, item: Item) -> None:
        values: dict[str, Any] = dict(zip(("image_w", "image_h"), item.sides, strict=True))
        values |= {"num_boxes": len(item.shares), "boxes": _text(item.pixels, "<f4")}
        values["features"] = _text(item.regions.features, "<f4")
        if item.regions.scores is not None:
            values["classes"] = _text(item.scores, "<f4")
        (self.out / f"{item.name}.json").write_text(json.dumps(values))


class _Arrays:
    """A folder with an `.npz` for each image: features, boxes (pixels), image_w, image_h and, if any, scores."""

    def __init__(self, out: Path, manifest: Manifest, counts: np.ndarray, stack: ExitStack):
        out.mkdir()
        self.out = out

    def add(self, item: Item) -> None:
        arrays: dict[str, Any] = {"features": item.regions.features, "boxes": item.pixels}
        arrays |= {"image_w": np.array(item.sides[0]), "image_h": np.array(item.sides[1])}
        if item.regions.scores is not None:
            arrays["scores"] = item.regions.scores
        np.savez(self.out / f"{item.name}.npz", allow_pickle=False, **arrays)


def _h5py() -> Any:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise FeatureFileError("this form needs a package: pip install 'vlp[features]'") from error
    return h5py


class _Hy5:
    """A folder with features.hdf5 and imgid2idx.json."""

    def __init__(self, out: Path, manifest: Manifest, counts: np.ndarray, stack: ExitStack):
        h5py = _h5py()
        out.mkdir()
        self.file = stack.enter_context(h5py.File(out / "features.hdf5", "w"))
        rows, images = int(counts.sum()), int((counts > 0).sum())
        for name, width in (("image_features", manifest.feature_size), ("image_bb", 4), ("spatial_features", 6)):
            self.file.create_dataset(name, (rows, width), "f4", maxshape=(None, width), chunks=(1, width))
        self.file.create_dataset("pos_boxes", (images, 2), "i4", maxshape=(None, 2))
        self.first, self.ids, self.out = 0, {}, out  # type: ignore[var-annotated]
        stack.callback(self._end)

    def _end(self) -> None:
        for name in ("image_features", "image_bb", "spatial_features"):
            self.file[name].resize(self.first, axis=0)
        self.file["pos_boxes"].resize(len(self.ids), axis=0)
        (self.out / "imgid2idx.json").write_text(json.dumps(self.ids))

    def add(self, item: Item) -> None:
        last = self.first + len(item.shares)
        for name, array in (
            ("image_features", item.regions.features),
            ("image_bb", item.pixels),
            ("spatial_features", item.places),
        ):
            self.file[name][self.first : last] = array
        self.file["pos_boxes"][len(self.ids)] = self.first, last
        self.ids[item.name] = len(self.ids)
        self.first = last


class _Vlp:
    """A folder with regions_featNNN.h5 and regions_clsNNN.h5 by the last three signs of ids, and regions_bbox.h5."""

    def __init__(self, out: Path, manifest: Manifest, counts: np.ndarray, stack: ExitStack):
        self.h5py = _h5py()
        out.mkdir()
        self.out = out

    def add(self, item: Item) -> None:
        classes, sure = item.classes()
        boxes = np.concatenate([item.pixels, (classes + 1)[:, None], sure[:, None]], 1).astype(np.float32)
        end = item.name[-3:]
        for name, array in (
            (f"feat{end}", item.regions.features),
            (f"cls{end}", item.scores),
            ("bbox", boxes),
        ):
            with self.h5py.File(self.out / f"regions_{name}.h5", "a") as file:
                file.create_dataset(item.name, data=array)


WRITERS: dict[str, Callable[[Path, Manifest, np.ndarray, ExitStack], _Writer]] = {
    "arrays": _Arrays,
    "bottom_up": _BottomUp,
    "hy5": _Hy5,
    "oscar": _Oscar,
    "uniter": _Uniter,
    "uniter_lmdb": _UniterLmdb,
    "vlbert": _Vlbert,
    "vlp": _Vlp,
}


@dataclass
class Written:
    """How many images were written, and samples without regions or whose image was written already. `by_key`: whether
    images are named by the samples' keys.
    """

    images: int
    without: int
    again: int
    by_key: bool = False


def export(reader: ShardReader, form: str, out: Path, progress: Callable[[int], None]) -> Written:
    """Write the regions of a split in one of `WRITERS`' forms. All appears at once, or nothing.

    Images are named as they were published, else by their file or id. Where that gives two of them one name, since
    folders and signs that are no letters go, all are named by their samples' keys.

    Raises:
        FeatureFileError: `out` is there, the regions lack what the form has, or two keys give one name.
        BadSampleError: a sample is damaged.
    """
    if out.exists():
        raise FeatureFileError(f"{out} is there already; remove it or choose another name")
    if not reader.manifest.feature_size:
        raise FeatureFileError(f"{reader.folder} has no region features to write")
    seen: set[str] = set()
    by_key = not _are_apart(reader, by_key=False)
    if by_key and not _are_apart(reader, by_key=True):
        raise FeatureFileError(
            f"{reader.folder}: two images have one name in these files, whose names have letters, digits, _ and -"
            " alone, by their own names and by their samples' keys; give the samples other keys"
        )
    written = Written(0, 0, 0, by_key)
    with _whole(out) as temporary, ExitStack() as stack:
        writer = WRITERS[form](temporary, reader.manifest, reader.region_counts, stack)
        for number in range(len(reader)):
            progress(1)
            regions, facts = reader.regions(number), reader.facts(number)
            if regions is None or not len(regions.boxes):
                written.without += 1
                continue
            name = canonical_stem(_source(reader.key(number), facts, by_key))
            if name in seen:
                written.again += 1
                continue
            seen.add(name)
            writer.add(Item(name, regions, _size(facts), facts, reader.manifest))
            written.images += 1
    return written


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        os.rename(temporary, out)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def _source(key: str, facts: dict[str, Any], by_key: bool) -> str:
    """What an image is named by: as it was published, else its file or id, else the sample's key."""
    for fact in () if by_key else ("published_as", "file_name", "image_id"):
        value = facts.get(fact)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return str(value)
    return key


def _are_apart(reader: ShardReader, by_key: bool) -> bool:
    """Whether different images have different names in the files."""
    sources: dict[str, str] = {}
    for number in range(len(reader)):
        source = _source(reader.key(number), reader.facts(number), by_key)
        if sources.setdefault(canonical_stem(source), source) != source:
            return False
    return True


def _size(facts: dict[str, Any]) -> tuple[int, int] | None:
    sides = listed(facts, "region_size") or [facts.get("width"), facts.get("height")]
    return (sides[0], sides[1]) if len(sides) == 2 and all(type(side) is int and side > 0 for side in sides) else None
