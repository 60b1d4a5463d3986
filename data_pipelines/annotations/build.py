"""From a reader's samples to a split of a data set, which appears whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path

from data_pipelines.annotations.files import LeftOut
from data_pipelines.shards.format import Manifest, Sample, ShardError, read_manifest, write_bytes, write_manifest
from data_pipelines.shards.index import write_split
from vlp.text.wordpiece import own_vocabulary


def build_split(
    folder: Path,
    split: str,
    samples: Iterable[Sample],
    manifest: Manifest,
    left_out: list[LeftOut],
    words: Collection[str] = (),
) -> int:
    """Write samples as one split of a new data set, or add the split to one of the same kind; returns their number.

    All is written beside `folder` first. `left_out` may grow while `samples` are read; it is stored as
    `SPLIT.left_out.jsonl`. The counts of `manifest` are filled in here. A data set that is there keeps its answer
    names, whose numbers a model may have learned; a `manifest` with none says nothing of them. A new one whose `words`
    are given gets `vocabulary.txt`, a WordPiece vocabulary of these words.

    Raises:
        ShardError: no sample is usable, the split is there already, or the data set there is another one, has other
            classes or answers or has features already.
    """
    if not re.fullmatch(r"[A-Za-z0-9_]+", split):
        raise ShardError(f"the split's name {split!r} may hold letters, digits and underscores only")
    folder = folder.resolve()  # `.` has no name
    there = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if there:
        manifest = _check_fits(folder, split, manifest)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        ordered = iter(samples)
        first = next(ordered, None)
        if first is None:
            counted = Counter(e.reason for e in left_out).most_common(5)
            examples = {entry.reason: entry.what for entry in reversed(left_out)}
            reasons = ", ".join(f"{n} x {reason} (as {examples[reason]})" for reason, n in counted)
            raise ShardError(f"no sample for split {split!r} can be used; left out: {reasons or 'nothing'}")
        count = write_split(temporary, split, chain([first], ordered))
        manifest = replace(manifest, samples={**manifest.samples, split: count})
        if left_out:
            lines = [json.dumps(entry._asdict()) for entry in left_out]
            write_bytes(temporary / f"{split}.left_out.jsonl", "\n".join([*lines, ""]).encode())
        if not there:
            if words:
                write_bytes(temporary / "vocabulary.txt", "\n".join([*own_vocabulary(words), ""]).encode())
            write_manifest(temporary, manifest)
            os.rename(temporary, folder)
            return count
        # the index comes last: until then the split is not there
        index = temporary / f"{split}.parquet"
        for path in [path for path in sorted(temporary.iterdir()) if path != index]:
            os.rename(path, folder / path.name)
        # read anew, for another split may have been added meanwhile
        manifest = replace(manifest, samples={**read_manifest(folder).samples, split: count})
        write_manifest(folder, manifest)
        os.rename(index, folder / index.name)
        return count
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_fits(folder: Path, split: str, manifest: Manifest) -> Manifest:
    """The manifest of the data set in `folder`, to which the split can be added."""
    there = read_manifest(folder)
    if (folder / f"{split}.parquet").exists():
        raise ShardError(f"{folder} has a split {split!r} already; choose another --split or folder")
    if list(folder.glob(f"{split}[-.]*")):
        raise ShardError(
            f"{folder} holds files of a split {split!r} without an index, left by a command that was killed;"
            f" remove {split}-* and {split}.* there"
        )
    featured = ("feature_size", "extractor", "attribute_names")
    if there.feature_size and any(getattr(there, name) != getattr(manifest, name) for name in featured):
        raise ShardError(f"{folder} has region features already; add all splits to a data set before its features")
    if (folder / "features.tmp").exists():
        raise ShardError(
            f"{folder}/features.tmp holds an unfinished extraction; finish or remove it before you add a split"
        )
    if there.name != manifest.name:
        raise ShardError(f"{folder} holds the data set {there.name!r}; choose another folder for {manifest.name!r}")
    if there.class_names != manifest.class_names:
        raise ShardError(
            f"{folder} has {len(there.class_names)} classes and the new split {len(manifest.class_names)}, or in"
            " another order; make both from files with the same categories"
        )
    if manifest.answer_names and there.answer_names != manifest.answer_names:
        raise ShardError(
            f"{folder} has {len(there.answer_names)} answers to choose from and the new split"
            f" {len(manifest.answer_names)}, or others; leave out --vocabulary, and those of the data set are kept"
        )
    return there
