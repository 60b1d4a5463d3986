"""Write captions of a data set's images, and make a data set that has them beside people's, to train on.

RUN writes captions: its folder, or one of its weight files. DATA is a data set's folder. Written is a new one, OUT: the
images of one split that have fewer captions than --fewer-than (default: those that have none) get one more by the run;
all else is as in DATA, whose files stay untouched. What was written is counted in the fact `written_captions` of each
sample (its last captions) and in OUT/written_captions.json. Retrieval and pretraining then train on OUT as on any data.

Captions are kept in OUT.jsonl while they are being written: stopped or killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

import vlp
from data_pipelines.batches import collate
from data_pipelines.shards.format import BadSampleError, Sample, ShardError
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.images import all_images
from data_pipelines.sources.segments import Filler, TextMaterial
from data_pipelines.sources.sides import Split
from data_pipelines.sources.source import LoadedPair
from data_pipelines.written_captions import captions_in_the_making, changed_data_set, require_new, with_caption
from vlp.checkpoints.digest import digest
from vlp.commands.command import whole_number
from vlp.evaluation.captions import write
from vlp.inference import TrainedModel
from vlp.writing.settings import Writing

EXAMPLE = "runs/captioning_xgpt_small data/scenes --out data/captioned --fewer-than 2"
AT_ONCE = 64  # images that are written about together


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of `vlp data caption`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder or one of its weight files")
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of a data set")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new data set, not there yet")
    parser.add_argument("--split", default="train", help="whose images get captions (default: %(default)s)")
    parser.add_argument(
        "--fewer-than", type=whole_number, default=1, metavar="N", help="captions of such an image (default: 1)"
    )
    parser.add_argument("--beams", type=whole_number, default=1, metavar="N", help="beginnings that are followed (1)")


class ImagesToDescribe:
    """Images of a split, loaded for a run that writes captions of them.

    Raises:
        ConfigError: the run writes no captions.
        ShardError: the data set lacks what the run sees.
    """

    def __init__(self, reader: ShardReader, run: TrainedModel):
        self.run, self.reader, self.task = run, reader, run.find("captions")
        size = reader.manifest.feature_size
        if run.loads.pixels is None and size != run.facts.feature_size:
            raise ShardError(
                f"{reader.folder} has region features of {size} numbers, the run takes {run.facts.feature_size}; make"
                " features by the extractor of its training data"
            )
        self.images = all_images(reader, run.loads)
        self.filler = Filler(Split(run.source.name, reader, run.tokenizer, run.loads))

    def load(self, number: int) -> LoadedPair:
        """An image beside a text without a caption.

        Raises:
            BadSampleError: it can't be used.
        """
        if not self.images.usable[number]:
            raise BadSampleError(self.reader.key(number), f"without {self.images.lacking.split(';')[0]}")
        facts, image = self.reader.facts(number), self.images.load(number, 0)
        material = TextMaterial([""], 0, [], lambda: self.images.names(facts, image), 0)
        return LoadedPair(number, number, self.filler.fill(number, facts, material), image)

    def describe(self, numbers: list[int], how: Writing) -> tuple[dict[int, str], list[BadSampleError]]:
        """A caption of each image, by number, and what is wrong with the others."""
        loaded, broken = [], []
        for number in numbers:
            try:
                loaded.append(self.load(number))
            except BadSampleError as error:
                broken.append(error)
        if not loaded:
            return {}, broken
        batch = collate(loaded, self.run.source.name, 0, 0, [])
        written = write(self.task, self.run, batch, how)
        texts = {pair.sample: best[0][0].strip() for pair, best in zip(loaded, written, strict=True)}
        broken += [BadSampleError(self.reader.key(n), "the run wrote nothing") for n, text in texts.items() if not text]
        return {number: text for number, text in texts.items() if text}, broken


def caption(options: argparse.Namespace, console: Console) -> None:
    """Write the captions, make the data set, and say how many there are."""
    require_new(options.out)
    reader = ShardReader(options.data, options.split)
    asked = [n for n, count in enumerate(reader.caption_counts.tolist()) if count < options.fewer_than]
    if not asked:
        raise ShardError(
            f"every image of split {options.split!r} of {options.data} has {options.fewer_than} captions or more;"
            " a greater --fewer-than has more of them described"
        )
    run = vlp.load(options.run, "cuda" if torch.cuda.is_available() else "cpu")
    images, how = ImagesToDescribe(reader, run), Writing(beams=options.beams)
    made: dict[str, Any] = {
        "run": str(options.run),
        "weights": digest(dict(run.state_dict())),
        "data": str(options.data),
        "split": options.split,
        "fingerprint": reader.fingerprint,
        "fewer_than": options.fewer_than,
        "beams": options.beams,
    }
    out: Path = options.out
    out.parent.mkdir(parents=True, exist_ok=True)
    path, left_out = out.with_name(f"{out.name}.jsonl"), list[BadSampleError]()
    with captions_in_the_making(path, made) as kept:
        missing = [number for number in asked if number not in kept.texts]
        began, columns = time.perf_counter(), (*Progress.get_default_columns(), MofNCompleteColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("images", total=len(missing))
            for first in range(0, len(missing), AT_ONCE):
                chunk = missing[first : first + AT_ONCE]
                texts, broken = images.describe(chunk, how)
                kept.add(texts)
                left_out += broken
                progress.advance(task, len(chunk))
        rate = len(missing) / max(time.perf_counter() - began, 1e-9)

        def changed(number: int, sample: Sample) -> Sample:
            return with_caption(sample, kept.texts[number]) if number in kept.texts else sample

        counts = {"asked": len(asked), "written": len(kept.texts), "left_out": len(left_out)}
        with console.status("making the data set"):
            samples = changed_data_set(options.data, out, options.split, changed, {**made, **counts})
        path.unlink()
    console.print(
        f"written: {out}, split {options.split}: {samples:,} samples, {len(asked):,} of which had fewer captions than"
        f" {options.fewer_than}; {len(kept.texts):,} captions were written ({rate:,.0f} a second)",
        soft_wrap=True,
    )
    for reason, number in Counter(error.reason for error in left_out).most_common():
        first_key = next(error.key for error in left_out if error.reason == reason)
        console.print(f"without: {number:,} x {reason} (first: {first_key})", style="yellow", soft_wrap=True)
