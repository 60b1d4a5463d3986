"""Zero-shot retrieval: python tools/eval_retrieval.py RUN [split=val] [gallery=1000] [data=DIR] [pictures=8].

RUN is a run's folder or one of its weight files. Every caption is scored with every image of the gallery (the first
samples of the split) by the image-text matching head. Prints a table, writes retrieval.json and retrieval.png beside
the run's weights.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in tools/train.py

import vlp
from data_pipelines.images import decode_image
from data_pipelines.scene_language import bag_of_words_scores
from data_pipelines.shards import BadSampleError, ShardError, ShardReader
from vlp.build import pixel_size
from vlp.checkpoints.key_map import KeyMismatchError
from vlp.checkpoints.load import write_atomically
from vlp.config import ConfigError, unknown_key
from vlp.evaluation.retrieval import both_directions, score_all_pairs
from vlp.evaluation.retrieval_picture import draw_retrieval, images_shown
from vlp.interfaces import PixelSize, Regions, SquareSize
from vlp.metrics.recall import RetrievalMetrics


def read_arguments(arguments: list[str]) -> tuple[Path, dict[str, str]]:
    """The run and the options."""
    options = {"split": "val", "gallery": "1000", "data": "", "pictures": "8"}
    if not arguments or "=" in arguments[0]:
        raise ConfigError(__doc__ or "")
    for argument in arguments[1:]:
        name, _, value = argument.partition("=")
        if name not in options:
            raise unknown_key("options", name, options)
        options[name] = value
    if not options["gallery"].isdigit() or not options["pictures"].isdigit() or options["gallery"] == "0":
        raise ConfigError("gallery and pictures must be whole numbers, gallery at least 1")
    return Path(arguments[0]), options


def read_gallery(
    reader: ShardReader, count: int, pixels: PixelSize | SquareSize | None, console: Console
) -> tuple[list[int], list[list[str]], list[Regions]]:
    """Sample numbers, captions and regions of the first `count` usable samples; broken ones are named and left out.

    pixels: the size of pictures, for a model that sees those and not regions.
    """
    numbers: list[int] = []
    captions: list[list[str]] = []
    regions: list[Regions] = []
    for number in range(len(reader)):
        if len(numbers) == count:
            break
        try:
            texts = [caption for caption in reader.facts(number)["captions"] if caption.strip()]
            image = read_image(reader, number, pixels)
        except BadSampleError as error:
            console.print(f"left out: {error}", style="yellow")
            continue
        if image is None or not texts:
            continue
        numbers.append(number)
        captions.append(texts)
        regions.append(image)
    if not numbers:
        what = "regions" if pixels is None else "a picture"
        raise ShardError(f"split {reader.split!r} of {reader.folder} has no sample with captions and {what}")
    return numbers, captions, regions


def read_image(reader: ShardReader, number: int, pixels: PixelSize | SquareSize | None) -> Regions | None:
    """The regions of a sample, or its picture scaled to `pixels`; None if it has none."""
    if pixels is not None:
        picture = reader.pixels(number, pixels)
        return None if picture is None else Regions.from_pixels(torch.from_numpy(picture))
    stored = reader.regions(number)
    if stored is None or not len(stored.boxes):
        return None
    return Regions(torch.from_numpy(stored.features), torch.from_numpy(stored.boxes))


def table_of(results: dict[str, dict[str, RetrievalMetrics]], texts: int, images: int) -> Table:
    """Results by direction and method, narrow enough for any terminal."""
    table = Table(title=f"zero-shot retrieval: {texts} captions, {images} images", title_justify="left")
    for name in ("", "method"):
        table.add_column(name)
    for name in ("R@1", "R@5", "R@10", "median rank"):
        table.add_column(name, justify="right")
    for direction in ("text_to_image", "image_to_text"):
        for method, directions in results.items():
            m = directions[direction]
            recalls = [f"{100 * r:.1f}" for r in (m.recall_at_1, m.recall_at_5, m.recall_at_10)]
            label = direction.replace("_", " ") if method == "model" else ""
            style = "bold" if method == "model" else None
            table.add_row(label, method, *recalls, f"{m.median_rank:g}", style=style)
        table.add_section()
    return table


def evaluate(run: Path, options: dict[str, str], console: Console) -> None:
    """Score, print, write."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = vlp.load(run, device)
    folder = run if run.is_dir() else run.parent
    source = model.config.data.sources[0]
    data = Path(options["data"]) if options["data"] else Path(model.config.data.root) / source.path
    reader = ShardReader(data, options["split"])
    pixels = pixel_size(model.config.model)
    if pixels is None and reader.manifest.feature_size != model.facts.feature_size:
        raise ConfigError(
            f"{data} has region features of {reader.manifest.feature_size} numbers, the model takes"
            f" {model.facts.feature_size}; extract the features with the extractor of the training data"
        )
    numbers, captions, regions = read_gallery(reader, int(options["gallery"]), pixels, console)
    texts = [caption for own in captions for caption in own]
    image_of_text = torch.tensor([n for n, own in enumerate(captions) for _ in own])
    began = time.perf_counter()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"scoring {len(texts) * len(regions)} pairs", total=len(texts) * len(regions))
        scores = score_all_pairs(
            model.score_batch,
            model.tokenizer.encode(texts),
            regions,
            progress=lambda pairs: progress.advance(task, pairs),
            see=model.see,
        )
    seconds = time.perf_counter() - began
    results = {"model": both_directions(scores, image_of_text)}
    objects = [reader.facts(number).get("objects", []) for number in numbers]
    if all(objects):
        baseline = torch.from_numpy(bag_of_words_scores(texts, objects)).float()
        results["bag of words"] = both_directions(baseline, image_of_text)
    chance = torch.rand(scores.shape, generator=torch.Generator().manual_seed(0))
    results["chance"] = both_directions(chance, image_of_text)
    console.print(table_of(results, len(texts), len(regions)))
    console.print(f"{len(texts) * len(regions)} pairs in {seconds:.0f} s")
    report = {
        "run": run.name,
        "data": str(data),
        "fingerprint": reader.fingerprint,
        "split": options["split"],
        "captions": len(texts),
        "images": len(regions),
        **{method: {k: asdict(m) for k, m in directions.items()} for method, directions in results.items()},
    }
    write_atomically(folder / "retrieval.json", json.dumps(report, indent=1).encode())
    queries = np.linspace(0, len(texts) - 1, min(int(options["pictures"]), len(texts))).astype(int).tolist()
    shown = images_shown(scores, image_of_text, queries)
    encoded = {image: reader.read_member(numbers[image], "image") for image in shown}
    pictures = {image: np.asarray(decode_image(data)) for image, data in encoded.items() if data is not None}
    if queries and len(pictures) == len(shown):
        draw_retrieval(scores, image_of_text, texts, pictures, queries, folder / "retrieval.png")
        console.print(f"written: {folder}/retrieval.json, {folder}/retrieval.png")
    else:
        console.print(f"written: {folder}/retrieval.json (the data holds no pictures to draw)")


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    if not arguments or arguments[0] in ("-h", "--help"):
        Console(highlight=False).print(__doc__, markup=False)
        return 0 if arguments else 1
    try:
        evaluate(*read_arguments(arguments), Console(highlight=False))
    except (ConfigError, ShardError, KeyMismatchError, FileNotFoundError, ValueError) as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
