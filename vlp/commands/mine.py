"""Find hard negatives for retrieval.

RUN is a run's folder or one of its weight files: a dual encoder, or a fusion model that was trained to score pairs. For
each sample of the split it finds the other images that the model takes most for one of the sample's captions, and
writes their keys to a file. A fusion model reads every caption with every image, which is for small data alone. A
source with `neighbours: {path: FILE, images: 1}` brings them to pair_ranking.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from data_pipelines.shards.format import BadSampleError, ShardError
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.images import all_images
from data_pipelines.sources.neighbours import write_neighbours
from vlp.commands.command import open_console, options_of, run_command, whole_number
from vlp.commands.retrieve import check_features, embed, load_models
from vlp.evaluation.neighbours import hardest_images
from vlp.evaluation.retrieval import SCORES_PER_CHUNK, score_all_pairs
from vlp.interfaces import Regions

MOST_IMAGES = 256  # of a block


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The run and the options."""
    parser = options_of("mine", __doc__, ["mine runs/clip_small", "mine runs/clip_small --split train --count 50"])
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder or one of its weight files")
    parser.add_argument("--split", default="train", help="of the data set")
    parser.add_argument("--count", type=whole_number, default=20, metavar="N", help="images for each sample")
    parser.add_argument("--data", type=Path, metavar="DIR", help="a data set (default: the run's own)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="(default: SPLIT-neighbours.parquet beside the data)")
    parser.add_argument("--task", metavar="GROUP", help="of a run on several tasks, that which scores (default: none)")
    return parser.read(arguments)


def mine(options: argparse.Namespace, console: Console) -> Path:
    """Mine and write; returns the file."""
    (model,) = load_models(options.run, options.task, None)
    data = options.data or Path(model.config.data.root) / model.source.path
    reader = ShardReader(data, options.split)
    check_features(model, reader, console.print)
    sides = all_images(reader, model.loads)
    out: Path = options.out or data / f"{reader.split}-neighbours.parquet"
    samples, captions = [], []
    broken: list[str] = []
    for number in range(len(reader)):
        try:
            own = [caption for caption in reader.facts(number)["captions"] if caption.strip()]
        except BadSampleError as error:
            broken.append(str(error))
            continue
        if own:
            samples.append(number)
            captions.append(own)
    if not samples:
        raise ShardError(f"split {reader.split!r} of {reader.folder} has no sample with captions")
    texts = [caption for own in captions for caption in own]
    image_of_text = torch.tensor([place for place, own in enumerate(captions) for _ in own])
    block = max(min(MOST_IMAGES, SCORES_PER_CHUNK // len(texts)), 1)

    def blocks(progress: Progress) -> Iterator[tuple[Tensor, Tensor]]:
        embedded = embed("captions", model.embed_texts, texts, progress) if model.dual else None
        tokens = model.tokenizer.encode(texts)
        task = progress.add_task(f"scoring {len(samples)} images", total=len(samples))
        for begin in range(0, len(samples), block):
            places: list[int] = []
            images: list[Regions] = []
            for place in range(begin, min(begin + block, len(samples))):
                try:
                    if not sides.shown[samples[place]]:
                        continue
                    images.append(sides.load(samples[place], 0))
                    places.append(place)
                except BadSampleError as error:
                    broken.append(str(error))
            progress.advance(task, min(block, len(samples) - begin))
            if not images:
                continue
            scores = (
                score_all_pairs(model.score_batch, tokens, images, see=model.see)
                if embedded is None
                else embedded @ model.embed_images(images).t()
            )
            yield torch.tensor(places), scores

    with Progress(console=console, transient=True) as progress:
        found, _ = hardest_images(blocks(progress), image_of_text, len(samples), options.count)
    for text in broken:
        console.print(f"left out: {text}", style="yellow", markup=False, soft_wrap=True)
    keys = [reader.key(number) for number in samples]
    neighbours = {key: [keys[n] for n in row if n >= 0] for key, row in zip(keys, found.tolist(), strict=True)}
    write_neighbours(out, reader, neighbours, str(options.run))
    console.print(f"written: {out}, neighbours of {len(neighbours)} samples", soft_wrap=True, markup=False)
    return out


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    return run_command(lambda given: mine(read_arguments(given), open_console()), arguments)
