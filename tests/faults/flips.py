"""Single flipped bits in what a run and a data set keep on disk, each read by the code that reads them."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data_pipelines.shards.format import BadSampleError
from data_pipelines.shards.reader import ShardReader
from vlp.checkpoints.digest import digest
from vlp.checkpoints.load import read_weights
from vlp.run_folder import RunFolder
from vlp.training.checkpoint_files import read_training_state

REPLACED = "replaced"  # stands for a sample that is left out and listed


def flip_bit(path: Path, bit: int) -> None:
    """Flip a bit of a file; once more undoes it."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def flip_and_read(run_dir: Path, data: Path, folder: Path, seed: float, count: int, found: Path) -> None:
    """Flip so many bits one after the other in copies of a run and of a data set, and read each file.

    Writes to `found`, for each flip, what became of it: `harmless` if the same was read, `seen` if an error named the
    file or the sample was replaced, or else what went wrong. Before it is read, what is true if the process dies of it.
    """
    rng = random.Random(seed)
    shutil.copytree(run_dir, folder / "flipped")
    shutil.copytree(data, folder / "data")
    checkpoints = RunFolder(folder / "flipped").checkpoints()
    files: list[tuple[str, Path, Callable[[Path], list[str]]]] = [
        *(("flip", path, lambda path: [digest(read_training_state(path))]) for path in checkpoints),
        *(
            ("flip", folder / "flipped" / name, lambda path: [digest(read_weights(path))])
            for name in ("model.safetensors", "best.safetensors")
        ),
        *(("data", path, read_data) for path in sorted((folder / "data").glob("train-*.tar"))),
        *(("data", folder / "data" / name, read_data) for name in ("train.parquet", "manifest.json")),
    ]
    whole: dict[Path, list[str]] = {}
    flips: list[dict[str, str | int]] = []
    for _ in range(count):
        promise, path, read = rng.choice(files)
        bit = rng.randrange(8 * path.stat().st_size)
        flips.append({"promise": promise, "file": path.name, "bit": bit, "outcome": "the process died"})
        found.write_text(json.dumps(flips))
        if path not in whole:
            whole[path] = read(path)
        flips[-1]["outcome"] = outcome_of(path, bit, read, whole[path])
        found.write_text(json.dumps(flips))


def outcome_of(path: Path, bit: int, read: Callable[[Path], list[str]], whole: list[str]) -> str:
    """What becomes of a flipped bit, see `flip_and_read`; the file is as before afterwards."""
    flip_bit(path, bit)
    try:
        ours = read(path)
    except Exception as error:
        return "seen" if path.name in str(error) else f"{type(error).__name__} without the file's name: {error}"
    finally:
        flip_bit(path, bit)
    if ours == whole:
        return "harmless"
    changed = {one for one, true in zip(ours, whole, strict=False) if one != true}
    return "seen" if len(ours) == len(whole) and changed == {REPLACED} else "something else was read, without an error"


def read_data(path: Path) -> list[str]:
    """The manifest, and all samples of the split `train`, of the data set that has this file."""
    reader = ShardReader(path.parent, "train")
    read = [digest([asdict(reader.manifest), reader.fingerprint])]
    for number in range(len(reader)):
        try:
            sample = reader.sample(number)
        except BadSampleError:
            read.append(REPLACED)
            continue
        assert sample.regions is not None
        arrays = [value for value in vars(sample.regions).values() if isinstance(value, np.ndarray)]
        one = hashlib.sha256(repr((sample.key, sample.captions, sample.facts)).encode())
        for array in arrays:
            one.update(array.tobytes())
        read.append(one.hexdigest())
    return read
