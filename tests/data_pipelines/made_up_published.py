"""Small files of published features, written as the code does that the form comes from, by none of our writers."""

from __future__ import annotations

import base64
import csv
import io
import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FEATURES, CLASSES, ATTRIBUTES = 8, 1601, 400
IDS = (42, 7, 1300)


@dataclass
class Detected:
    """What a detector says of a picture: boxes in pixels, float32; scores of all classes, the background first."""

    number: int
    width: int
    height: int
    boxes: np.ndarray
    features: np.ndarray
    scores: np.ndarray
    attributes: np.ndarray
    attribute_confidences: np.ndarray

    @property
    def name(self) -> str:
        return f"COCO_val2014_{self.number:012d}"

    @property
    def classes(self) -> np.ndarray:
        """Without the background."""
        return self.scores[:, 1:].argmax(1)

    @property
    def confidences(self) -> np.ndarray:
        return self.scores[:, 1:].max(1)

    @property
    def places(self) -> np.ndarray:
        """Corners as shares, width, height, float32."""
        shares = self.boxes / np.array([self.width, self.height] * 2, np.float32)
        return np.concatenate([shares, shares[:, 2:] - shares[:, :2]], 1)


def detected(number: int, rows: int | None = None, size: tuple[int, int] | None = None) -> Detected:
    rng = np.random.default_rng(number)
    (width, height), count = size or (640, 480 - number % 5), rows or int(rng.integers(10, 14))
    low, extent = rng.random((count, 2)) / 2, 0.03 + rng.random((count, 2)) * 0.45
    scores = rng.random((count, CLASSES), dtype=np.float32) ** 40
    scores /= scores.sum(1, keepdims=True)
    return Detected(
        number,
        width,
        height,
        (np.concatenate([low, low + extent], 1) * [width, height, width, height]).astype(np.float32),
        rng.standard_normal((count, FEATURES), dtype=np.float32),
        scores,
        rng.integers(0, ATTRIBUTES, count),
        rng.random(count, dtype=np.float32),
    )


IMAGES = [detected(number) for number in IDS]


def text(array: Any, dtype: str = "float32") -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype=dtype)).decode()


def write_bottom_up(path: Path, images: list[Detected] = IMAGES) -> Path:
    """LXMERT's, by way of `csv`."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        for d in images:
            arrays = [text(d.classes, "int64"), text(d.confidences), text(d.attributes, "int64")]
            arrays.append(text(d.attribute_confidences))
            writer.writerow([d.name, d.height, d.width, *arrays, len(d.boxes), text(d.boxes), text(d.features)])
    return path


def write_bottom_up_6(path: Path, images: list[Detected] = IMAGES) -> Path:
    rows = [(d.number, d.width, d.height, len(d.boxes), text(d.boxes), text(d.features)) for d in images]
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


def uniter_arrays(d: Detected) -> dict[str, np.ndarray]:
    confidences = d.confidences
    found = {"norm_bb": d.places, "features": d.features, "conf": confidences, "soft_labels": d.scores}
    return {name: array.astype(np.float16) for name, array in found.items()}


def write_uniter(folder: Path, images: list[Detected] = IMAGES) -> Path:
    folder.mkdir(parents=True)
    for d in images:
        np.savez_compressed(folder / f"{d.name.lower()}.npz", **uniter_arrays(d))
    return folder


def packed(array: np.ndarray) -> dict[str, Any]:
    """As msgpack_numpy packs it."""
    return {"nd": True, "type": array.dtype.str, "kind": "", "shape": list(array.shape), "data": array.tobytes()}


def write_lmdb(folder: Path, values: dict[str, bytes]) -> Path:
    import lmdb

    with lmdb.open(str(folder), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
    return folder


def write_uniter_lmdb(folder: Path, images: list[Detected] = IMAGES) -> Path:
    import msgpack

    values = {
        f"{d.name.lower()}.npz": msgpack.dumps({k: packed(v) for k, v in uniter_arrays(d).items()}) for d in images
    }
    return write_lmdb(folder, {**values, "__keys__": json.dumps(list(values)).encode()})


def write_uniter_lmdb_compressed(folder: Path, images: list[Detected] = IMAGES) -> Path:
    values = {}
    for d in images:
        stream = io.BytesIO()
        np.savez_compressed(stream, **uniter_arrays(d))
        values[f"{d.name.lower()}.npz"] = stream.getvalue()
    return write_lmdb(folder, {**values, "__keys__": json.dumps(list(values)).encode()})


def write_oscar(path: Path, images: list[Detected] = IMAGES, index: bool = False) -> Path:
    offsets = []
    with path.open("wb") as file:
        for d in images:
            offsets.append(file.tell())
            features = text(np.concatenate([d.features, d.places], 1))
            said = json.dumps({"num_boxes": len(d.boxes), "features": features})
            file.write(f"{d.number}\t{said}\n".encode())
    if index:
        path.with_suffix(".lineidx").write_text("".join(f"{offset}\n" for offset in offsets))
    return path


def write_oscar_3(path: Path, images: list[Detected] = IMAGES) -> Path:
    rows = [(d.number, len(d.boxes), text(np.concatenate([d.features, d.places], 1))) for d in images]
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


def write_vinvl(path: Path, images: list[Detected] = IMAGES) -> Path:
    """As its extractor writes it: an object after the other."""
    lines = []
    for d in images:
        parts = zip(d.boxes.tolist(), d.classes.tolist(), d.confidences.tolist(), d.features, strict=True)
        objects = [{"rect": b, "class": f"thing {c}", "conf": s, "feature": text(f)} for b, c, s, f in parts]
        lines.append(f"{d.number}\t{json.dumps(objects)}\n")
    path.write_text("".join(lines))
    return path


def write_labels(path: Path, images: list[Detected] = IMAGES) -> Path:
    """Names of the regions in another order, and of all but the last."""
    lines = []
    for d in images:
        objects = [
            {"class": f"thing {n}", "conf": float(d.confidences[n]), "rect": d.boxes[n].tolist()}
            for n in reversed(range(len(d.boxes) - 1))
        ]
        lines.append(f"{d.number}\t{json.dumps({'image_w': d.width, 'image_h': d.height, 'objects': objects})}\n")
    path.write_text("".join(lines))
    return path


def vilbert_map(d: Detected, encoded: bool) -> dict[str, Any]:
    arrays = {"boxes": d.boxes, "features": d.features}
    found: dict[str, Any] = {"image_id": str(d.number), "image_h": d.height, "image_w": d.width}
    found["num_boxes"] = len(d.boxes)
    return {**found, **{k: base64.b64encode(v.tobytes()) if encoded else v for k, v in arrays.items()}}


def write_vilbert(folder: Path, images: list[Detected] = IMAGES, encoded: bool = False, protocol: int = 4) -> Path:
    values = {str(d.number): pickle.dumps(vilbert_map(d, encoded), protocol) for d in images}
    keys = pickle.dumps([key.encode() for key in values], protocol)
    return write_lmdb(folder, {**values, "keys": keys})


def vlbert_map(d: Detected) -> dict[str, Any]:
    arrays = {"boxes": text(d.boxes), "features": text(d.features), "classes": text(d.scores)}
    return {"image_w": d.width, "image_h": d.height, "num_boxes": len(d.boxes), **arrays}


def write_vlbert(folder: Path, images: list[Detected] = IMAGES) -> Path:
    folder.mkdir(parents=True)
    for d in images:
        (folder / f"{d.number:08d}.json").write_text(json.dumps(vlbert_map(d)))
    return folder


def write_vlbert_zip(path: Path, images: list[Detected] = IMAGES) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for d in images:
            archive.writestr(f"frcnn/{d.number:08d}.json", json.dumps(vlbert_map(d)))
    return path


def write_vlp(folder: Path, images: list[Detected] = IMAGES) -> list[Path]:
    """Files of features; those of classes and boxes lie beside them."""
    import h5py

    folder.mkdir(parents=True)
    files = set()
    for d in images:
        boxes = np.concatenate([d.boxes, d.classes[:, None] + 1, d.confidences[:, None]], 1).astype(np.float32)
        for name, array in ((f"feat{d.name[-3:]}", d.features), (f"cls{d.name[-3:]}", d.scores), ("bbox", boxes)):
            with h5py.File(folder / f"vg_{name}.h5", "a") as file:
                file.create_dataset(d.name, data=array)
        files.add(folder / f"vg_feat{d.name[-3:]}.h5")
    return sorted(files)


def write_hy5(path: Path, images: list[Detected] = IMAGES) -> Path:
    """The adaptive form, and beside it the pickle of rows."""
    import h5py

    ends = np.cumsum([len(d.boxes) for d in images])
    with h5py.File(path, "w") as file:
        file.create_dataset("image_features", data=np.concatenate([d.features for d in images]))
        file.create_dataset("image_bb", data=np.concatenate([d.boxes for d in images]))
        file.create_dataset("spatial_features", data=np.concatenate([d.places for d in images]))
        ranges = [(end - len(d.boxes), end) for end, d in zip(ends, images, strict=True)]
        file.create_dataset("pos_boxes", data=np.array(ranges, np.int32))
    path.with_name("imgid2idx.pkl").write_bytes(pickle.dumps({d.number: n for n, d in enumerate(images)}, 2))
    return path


def write_hy5_36(path: Path, images: list[Detected]) -> Path:
    """The form of as many boxes for all, with a JSON of rows."""
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("image_features", data=np.stack([d.features for d in images]))
        file.create_dataset("image_bb", data=np.stack([d.boxes for d in images]))
        file.create_dataset("spatial_features", data=np.stack([d.places for d in images]))
    path.with_name("imgid2idx.json").write_text(json.dumps({str(d.number): n for n, d in enumerate(images)}))
    return path


def write_arrays(folder: Path, images: list[Detected] = IMAGES) -> Path:
    folder.mkdir(parents=True)
    for d in images:
        sizes = {"image_w": np.array(d.width), "image_h": np.array(d.height), "num_bbox": np.array(len(d.boxes))}
        np.savez(folder / f"{d.name}.jpg.npz", x=d.features, bbox=d.boxes, **sizes)
    return folder


def write_self_critical(folder: Path, images: list[Detected] = IMAGES) -> tuple[Path, Path]:
    """Features and boxes in folders of their own."""
    (folder / "att").mkdir(parents=True)
    (folder / "box").mkdir()
    for d in images:
        np.savez_compressed(folder / f"att/{d.number}.npz", feat=d.features)
        np.save(folder / f"box/{d.number}.npy", d.boxes)
    return folder / "att", folder / "box"
