"""Adding region features to a data set in its own folder, so that a kill at any moment loses nothing.

New shards are made in `features.tmp` inside the data set's folder, one at a time: a shard that is there is done, and
a command that is run again goes on with the next. When all are done and equal the old ones in everything but the
regions, the folder becomes `features.ready`, its files replace the older ones, the manifest last, and it is removed.
While it exists every reader refuses the data set; `finish_replacing`, with which a command begins, does the rest.
"""

from __future__ import annotations

import fcntl
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_pipelines.shards.format import (
    IMAGE_FORMATS,
    READY,
    BadSampleError,
    Manifest,
    Sample,
    ShardError,
    check_regions,
    read_manifest,
    write_manifest,
    write_shard,
)
from data_pipelines.shards.index import indexed_splits, write_index
from data_pipelines.shards.reader import ShardReader

WORK = "features.tmp"
# what a rewritten sample must share with the older one, beside its order
KEPT = ("key", "shard", "caption_count", "image_format", "image_bytes", "image_crc32")


def add_features(
    folder: Path,
    feature_size: int,
    class_names: list[str],
    extractor: str,
    change: Callable[[Iterator[Sample]], Iterator[Sample]],
    progress: Callable[[int], None],
    attribute_names: Sequence[str] = (),
    of_pictures: bool = True,
) -> bool:
    """Replace the samples of a data set without features by `change` of them, and fill in the manifest.

    Args:
        folder: the data set's folder.
        feature_size, class_names, attribute_names, extractor: for the manifest. `extractor` is also the identity of
            the work: only the same one goes on with what an earlier run has left.
        change: gives a shard's samples, in their order, with regions, or without where one can have none; all else
            stays but facts may be added. It may look at several before it gives the first.
        progress: told how many samples were done, now or by an earlier run.
        of_pictures: whether they are made of pictures, which each split must then have.

    Returns:
        False if the data set has these features already.

    Raises:
        ShardError: it has other features, lacks pictures, holds what would be lost, is damaged, or is being worked
            on.
    """
    with _locked(folder):
        old = read_manifest(folder)
        attributes = list(attribute_names) or old.attribute_names
        new = replace(
            old,
            feature_size=feature_size,
            class_names=class_names,
            attribute_names=attributes,
            extractor=extractor,
        )
        if old == new:
            return False
        if old.feature_size:
            raise ShardError(
                f"{folder} has region features already, by: {old.extractor}. They are not replaced;"
                " make the data set anew in another folder for features by: " + extractor
            )
        readers = [ShardReader(folder, split) for split in splits_of(folder, old)]
        for reader in readers:
            if reader.foreign:
                raise ShardError(
                    f"split {reader.split!r} of {folder} is an index of another tool's tars, which are never changed,"
                    " so there is no place for features"
                )
            if of_pictures and not reader.index["image_bytes"].to_numpy().any():
                raise ShardError(f"split {reader.split!r} of {folder} holds no pictures to make features of")
        work = folder / WORK
        _open_work(work, new)
        for reader in readers:
            _make_shards(reader, work, new, change, progress)
        _flush(work)
        os.rename(work, folder / READY)
        _put_in_place(folder)
        return True


def finish_replacing(folder: Path) -> None:
    """Do the rest of the replacing if an earlier run was killed in the midst of it.

    Raises:
        ShardError: there is no such folder, or another process is making features of it.
    """
    with _locked(folder):
        _put_in_place(folder)


def splits_of(folder: Path, manifest: Manifest) -> list[str]:
    """The splits of a data set, by its manifest and its indices."""
    return sorted({*manifest.samples, *indexed_splits(folder)})


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process alone; the lock ends with the process, however that ends."""
    if not folder.is_dir():
        raise ShardError(f"{folder} holds no data set (no such folder); `vlp data` makes one")
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ShardError(f"another process is making features of {folder}; wait until it has ended") from error
    finally:
        os.close(handle)


def _open_work(work: Path, new: Manifest) -> None:
    if list(work.glob("[!.]*.tar")):  # else nothing is done yet that another extractor could not begin anew
        begun = read_manifest(work)
        if begun != new:
            raise ShardError(
                f"{work} holds an unfinished extraction by: {begun.extractor}. Finish it by the same command, or remove"
                f" that folder to begin anew with: {new.extractor}"
            )
    work.mkdir(exist_ok=True)
    write_manifest(work, new)
    for stale in work.glob(".*.tmp"):
        stale.unlink()


def _make_shards(
    reader: ShardReader,
    work: Path,
    new: Manifest,
    change: Callable[[Iterator[Sample]], Iterator[Sample]],
    progress: Callable[[int], None],
) -> None:
    """Make the shards and the index of a split."""
    shard_of = reader.index["shard"].to_numpy()
    for number, path in enumerate(reader.shards):
        samples = np.flatnonzero(shard_of == number)
        if (work / path.name).exists():
            progress(len(samples))
            continue
        _refuse_other_members(path)
        write_shard(work / path.name, _changed(reader, samples, new, change, progress))
    write_index(work, reader.split)
    made = ShardReader(work, reader.split).index
    different = [name for name in KEPT if made[name].to_pylist() != reader.index[name].to_pylist()]
    if different:
        raise ShardError(
            f"the shards of split {reader.split!r} in {work} do not belong to those in {reader.folder} (they differ in"
            f" {', '.join(different)}); remove {work} and run the command again"
        )


def _changed(
    reader: ShardReader,
    numbers: np.ndarray,
    new: Manifest,
    change: Callable[[Iterator[Sample]], Iterator[Sample]],
    progress: Callable[[int], None],
) -> Iterator[Sample]:
    try:
        for sample in change(reader.sample(int(number)) for number in numbers):
            if sample.regions is not None:
                check_regions(sample.key, sample.regions, new)
            yield sample
            progress(1)
    except BadSampleError as error:
        # rewriting would give damaged bytes a checksum that fits
        raise ShardError(f"split {reader.split!r} of {reader.folder}: {error}; restore or remake the shard") from error


def _refuse_other_members(path: Path) -> None:
    with tarfile.open(path, "r:") as tar:
        others = [name for name in tar.getnames() if name.partition(".")[2] not in ("json", *IMAGE_FORMATS)]
    if others:
        raise ShardError(
            f"{path} holds {others[0]!r}, which would be lost, since only KEY.json and a picture are kept;"
            " make a data set without it"
        )


def _flush(folder: Path) -> None:
    """Bring files to the disk, since the older ones go once they are renamed."""
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _put_in_place(folder: Path) -> None:
    """Move finished files over the older ones."""
    ready = folder / READY
    if not ready.is_dir():
        return
    for path in sorted(ready.iterdir(), key=lambda path: (path.name == "manifest.json", path.name)):
        os.replace(path, folder / path.name)
    ready.rmdir()
