"""Measure zero-shot retrieval, and draw it.

RUN is a run's folder or one of its weight files. Every caption is scored with every image of the gallery (the first
samples of the split): by the cosine of their embeddings if RUN is a dual encoder, else by the image-text matching head.
With --rerank K, the dual encoder RUN proposes its best K images for every caption and K captions for every image, and
the fusion model RUN2 puts these in order. After Ctrl-C what is done is measured and written, and the exit code is 130:
of a fusion model the gallery is then the images that are done, of RUN2 nothing. Prints a table, and writes
retrieval-SPLIT-IMAGES.json and .png beside the run's weights; other weights, tasks, data or re-ranking show in the name
too.

Where the data has pictures alone, a run that reads regions makes them as those of its own data were made, if that was
by `vlp features regions` in a grid or by a detector (--weights: the same file as there; twice, if there were two).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

import vlp
from data_pipelines.scenes.language import bag_of_words_scores
from data_pipelines.shards.format import BadSampleError
from data_pipelines.shards.pictures import ImageError, decode_image
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.gallery import Gallery, read_gallery
from vlp.checkpoints.load import write_atomically
from vlp.commands.command import count, open_console, options_of, run_command, whole_number
from vlp.config import ConfigError
from vlp.evaluation.rerank import reranked
from vlp.evaluation.retrieval import (
    Scores,
    both_directions,
    chance,
    score_all_pairs,
    score_pairs,
    scores_of_embeddings,
    scores_of_matrix,
)
from vlp.evaluation.retrieval_picture import draw_retrieval, images_shown
from vlp.inference import TrainedModel
from vlp.interfaces import Regions
from vlp.metrics.recall import RetrievalMetrics

Results = dict[str, dict[str, RetrievalMetrics]]  # by method and direction
IMAGES_AT_ONCE = 64  # that a fusion model scores with all captions before the next; Ctrl-C loses so many
SHOWN = 5  # of images that can't be looked at; the rest is in the JSON
MOST_BAG_PAIRS = 20_000_000  # the bag of words is slow


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The run and the options."""
    parser = options_of(
        "retrieve",
        __doc__,
        [
            "retrieve runs/uniter_small --gallery 200",
            "retrieve runs/clip_small --rerank 20 --rerank-by runs/uniter_small",
        ],
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder or one of its weight files")
    parser.add_argument("--split", default="val", help="of the data set")
    parser.add_argument("--gallery", type=whole_number, default=1000, metavar="N", help="images, with their captions")
    parser.add_argument(
        "--folds",
        type=whole_number,
        default=1,
        metavar="N",
        help="galleries, one after another, whose means are told; COCO's 1K test: 5",
    )
    parser.add_argument(
        "--seen-only", action="store_true", help="measure over what can be looked at; else what can't is not found"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="a data set (default: the run's own)")
    parser.add_argument("--task", metavar="GROUP", help="of a run on several tasks, that which scores (default: none)")
    parser.add_argument("--pictures", type=count, default=8, metavar="N", help="queries that are drawn")
    parser.add_argument("--rerank", type=count, default=0, metavar="K", help="candidates that RUN2 orders")
    parser.add_argument("--rerank-by", type=Path, metavar="RUN2", help="the fusion model (default: none)")
    parser.add_argument("--weights", type=Path, action="append", default=[], help="of what makes regions")
    options = parser.read(arguments)
    if bool(options.rerank) != bool(options.rerank_by):
        raise ConfigError("--rerank K (how many candidates) and --rerank-by RUN2 (the fusion model) need one another")
    return options


def load_models(
    run: Path, group: str | None, rerank_by: Path | None, weights: Sequence[Path] = ()
) -> list[TrainedModel]:
    """The model and, if there is one, the model that re-ranks; before any data is read, that they can score.

    weights: of what makes regions for the last of them.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = [vlp.load(run, device, None if rerank_by else group, () if rerank_by else weights)]
    if rerank_by:
        models.append(vlp.load(rerank_by, device, group, weights))
        if not models[0].dual or models[1].dual:
            raise ConfigError("re-ranking takes a dual encoder as RUN and a fusion model as --rerank-by")
    for model in models:
        if not model.dual:
            model.matching()
    return models


def check_features(model: TrainedModel, reader: ShardReader, warn: Callable[[str], None]) -> None:
    """Whether the data's regions are such as the model sees."""
    theirs, own = reader.manifest, model.facts.extractors.get(model.source.name)
    if model.loads.pixels is not None:
        return
    if theirs.feature_size != model.facts.feature_size:
        raise ConfigError(
            f"{reader.folder} has region features of {theirs.feature_size} numbers, the model takes"
            f" {model.facts.feature_size}; extract the features with the extractor of the training data"
        )
    if own and theirs.extractor != own:
        warn(f"the regions of {reader.folder} were made so: {theirs.extractor}; those of the run's data so: {own}")


def makes_regions(model: TrainedModel, reader: ShardReader) -> bool:
    """Whether regions have to be made of the data's pictures."""
    return model.loads.pixels is None and not reader.manifest.feature_size and bool(reader.has_image.any())


def embed(
    title: str, function: Callable[[list], Tensor], things: list[str] | list[Regions], progress: Progress
) -> Tensor:
    """Embeddings float32 [n, D], some at a time."""
    task = progress.add_task(f"embedding {len(things)} {title}", total=len(things))
    parts = []
    for begin in range(0, len(things), 256):
        parts.append(function(things[begin : begin + 256]))
        progress.advance(task, len(parts[-1]))
    return torch.cat(parts)


def scores_of(model: TrainedModel, gallery: Gallery, progress: Progress) -> tuple[Scores, Gallery]:
    """How well captions and images match, by the model; and of which, if Ctrl-C came before the last."""
    texts, images = gallery.texts, gallery.images[0]
    if model.dual:
        texts_embedded = embed("captions", model.embed_texts, texts, progress)
        return scores_of_embeddings(texts_embedded, embed("images", model.embed_images, images, progress)), gallery
    task = progress.add_task(f"scoring {len(texts) * len(images)} pairs", total=len(texts) * len(images))
    tokens = model.tokenizer.encode(texts)
    done = lambda pairs: progress.advance(task, pairs)  # noqa: E731
    parts: list[Tensor] = []
    try:
        for begin in range(0, len(images), IMAGES_AT_ONCE):
            some = images[begin : begin + IMAGES_AT_ONCE]
            parts.append(score_all_pairs(model.score_batch, tokens, some, progress=done, see=model.see))
    except KeyboardInterrupt:
        if not parts:
            raise
    scores = torch.cat(parts, 1)
    scored = gallery.first(scores.shape[1])
    return scores_of_matrix(scores[: len(scored.texts)]), scored


def rerank_by(
    model: TrainedModel, texts: list[str], images: list[Regions], progress: Progress
) -> Callable[[list[Tensor]], list[Tensor]]:
    """Scores of chosen pairs, by the fusion model."""
    tokens = model.tokenizer.encode(texts)

    def score(texts_of_image: list[Tensor]) -> list[Tensor]:
        total = sum(len(own) for own in texts_of_image)
        task = progress.add_task(f"re-ranking {total} pairs", total=total)
        done = lambda pairs: progress.advance(task, pairs)  # noqa: E731
        return score_pairs(model.score_batch, tokens, images, texts_of_image, progress=done, see=model.see)

    return score


def table_of(results: Results, texts: int, images: int) -> Table:
    """Results by direction and method, narrow enough for any terminal."""
    table = Table(title=f"zero-shot retrieval: {texts} captions, {images} images", title_justify="left")
    for name in ("", "method"):
        table.add_column(name)
    for name in ("R@1", "R@5", "R@10", "median rank"):
        table.add_column(name, justify="right")
    sections = [("text_to_image", "", "text to image"), ("image_to_text", "", "image to text")]
    if texts > images:  # with one caption an image, true recall is recall
        sections.append(("image_to_text", "true_", "  true recall"))
    for direction, kind, label in sections:
        for number, (method, directions) in enumerate(results.items()):
            m = directions[direction]
            recalls = [f"{100 * getattr(m, f'{kind}recall_at_{k}'):.1f}" for k in (1, 5, 10)]
            style = "bold" if method in ("model", "re-ranked") else None
            table.add_row("" if number else label, method, *recalls, "" if kind else f"{m.median_rank:g}", style=style)
        table.add_section()
    return table


@dataclass(frozen=True)
class Measured:
    """What was measured in one gallery, or in the part that was scored before Ctrl-C came (`stopped`); `ranked_again`:
    the second model had its say.
    """

    gallery: Gallery
    scores: Scores
    results: Results
    stopped: bool
    ranked_again: bool


def read_galleries(
    reader: ShardReader, options: argparse.Namespace, models: list[TrainedModel], missed: Callable[[str], None]
) -> list[Gallery]:
    """As many as are asked for, one after another.

    Raises:
        ConfigError: the split has too few samples for more than one.
    """
    loads = [model.loads for model in models]
    make = [model.make_images.regions if makes_regions(model, reader) else None for model in models]
    galleries, first = [], 0
    for number in range(options.folds):
        galleries.append(read_gallery(reader, options.gallery, loads, missed, first, make))
        first = galleries[-1].end
        full = len(galleries[-1].numbers) + len(galleries[-1].lost) == options.gallery
        if options.folds > 1 and not full:
            raise ConfigError(
                f"split {reader.split!r} of {reader.folder} ends in gallery {number + 1} of {options.folds} of"
                f" {options.gallery} images; take fewer --folds, or a smaller --gallery"
            )
    return galleries


def measure(
    models: list[TrainedModel], gallery: Gallery, reader: ShardReader, options: argparse.Namespace, progress: Progress
) -> Measured:
    """Score a gallery, and compare with what needs no model."""
    whole, ranked_again = len(gallery.numbers), False
    lost = (0, 0) if options.seen_only else (sum(gallery.lost), len(gallery.lost))
    scores, gallery = scores_of(models[0], gallery, progress)
    texts, images = gallery.texts, len(gallery.numbers)
    stopped = images < whole
    image_of_text = torch.tensor([n for n, own in enumerate(gallery.captions) for _ in own])
    results: Results = {"model": both_directions(scores, image_of_text, images, lost=lost)}
    if len(models) > 1:
        again = rerank_by(models[1], texts, gallery.images[1], progress)
        try:
            scores = reranked(scores, image_of_text, images, options.rerank, again)
            results["re-ranked"] = both_directions(scores, image_of_text, images, lost=lost)
            ranked_again = True
        except KeyboardInterrupt:
            stopped = True
    facts = [reader.facts(number) for number in gallery.numbers]
    objects = [own.get("objects", []) for own in facts if own.get("language") == "en"]  # the words are
    if len(objects) == len(facts) and all(objects) and len(texts) * images <= MOST_BAG_PAIRS:
        baseline = torch.from_numpy(bag_of_words_scores(texts, objects)).float()
        results["bag of words"] = both_directions(scores_of_matrix(baseline), image_of_text, images, lost=lost)
    results["chance"] = chance(image_of_text, images)
    return Measured(gallery, scores, results, stopped, ranked_again)


def means(results: list[Results]) -> Results:
    """The means over galleries, of what was measured in all of them; `queries` are added up."""
    found: Results = {}
    for method in results[0]:
        if all(method in own for own in results):
            found[method] = {}
            for direction in results[0][method]:
                each = [asdict(own[method][direction]) for own in results]
                mean: dict[str, Any] = {key: sum(one[key] for one in each) / len(each) for key in each[0]}
                mean["queries"] = sum(one["queries"] for one in each)
                found[method][direction] = RetrievalMetrics(**mean)
    return found


def name_of(options: argparse.Namespace, reader: ShardReader, images: int) -> str:
    """A file name that no other evaluation of the run has."""
    run: Path = options.run
    parts = ["retrieval", "" if run.is_dir() else run.stem, reader.folder.name if options.data else ""]
    parts += [options.task or "", reader.split, str(images) if options.folds == 1 else f"{images}-in-{options.folds}"]
    if options.rerank:
        parts.append(f"rerank-{options.rerank}-{options.rerank_by.resolve().name}")
    return "-".join(part for part in parts if part)


def draw(
    scores: Scores, gallery: Gallery, reader: ShardReader, count: int, path: Path, warn: Callable[[str], None]
) -> bool:
    """Draw queries of `count` images spread over the gallery; False if there is nothing to draw."""
    own = np.unique(np.linspace(0, len(gallery.numbers) - 1, count).astype(int)).tolist()
    if not own or not reader.has_image[gallery.numbers].any():
        return False
    first = np.cumsum([0, *(len(captions) for captions in gallery.captions)])
    chosen = [row % len(gallery.captions[image]) for row, image in enumerate(own)]  # not always an image's first
    rows = scores.of_texts(torch.tensor([first[image] + n for image, n in zip(own, chosen, strict=True)]))
    shown = [images_shown(row, image) for row, image in zip(rows, own, strict=True)]
    pictures = {}
    for image in sorted({image for row in shown for _, image in row}):
        number = gallery.numbers[image]
        try:
            data = reader.read_member(number, "image")
            if data is not None:
                pictures[image] = np.asarray(decode_image(data))
        except (BadSampleError, ImageError) as error:
            warn(f"picture of sample {reader.key(number)} can't be shown: {error}")
    captions = [gallery.captions[image][n] for image, n in zip(own, chosen, strict=True)]
    if not draw_retrieval(captions, shown, own, pictures, path):
        warn(f"{path}: matplotlib's font lacks some characters of the captions, which are drawn as boxes")
    return True


def evaluate(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Score, print, write; returns the report."""

    def warn(text: str) -> None:
        console.print(text, style="yellow", markup=False, soft_wrap=True)

    run = options.run
    models = load_models(run, options.task, options.rerank_by, options.weights)
    own = Path(models[0].config.data.root) / models[0].source.path
    data = options.data or own
    reader = ShardReader(data, options.split)
    for model in models:
        model.make_images.say = warn
        if not makes_regions(model, reader):
            check_features(model, reader, warn)
    missed: list[str] = []
    galleries = read_galleries(reader, options, models, missed.append)
    for text in missed[:SHOWN]:
        warn(f"not looked at: {text}")
    if missed:
        captions = sum(sum(gallery.lost) for gallery in galleries)
        counted = "are not counted" if options.seen_only else "count as not found (--seen-only leaves them out)"
        warn(f"{len(missed)} images with {captions} captions could not be looked at, and {counted}")
    began = time.perf_counter()
    measured: list[Measured] = []
    with Progress(console=console, transient=True) as progress:
        for gallery in galleries:
            measured.append(measure(models, gallery, reader, options, progress))
            if measured[-1].stopped:
                break
    seconds = time.perf_counter() - began
    results = means([one.results for one in measured])
    texts, images = (sum(len(getattr(one.gallery, name)) for one in measured) for name in ("texts", "numbers"))
    pairs = sum(len(one.gallery.texts) * len(one.gallery.numbers) for one in measured)
    if len(galleries) > 1:
        console.print(f"means over {len(measured)} galleries of {options.gallery} images")
    console.print(table_of(results, texts, images))
    if texts > images:
        console.print("R@k: any caption of the image is found; true recall: the share that is found")
    console.print(f"{pairs} pairs in {seconds:.1f} s")
    scores, gallery, stopped = measured[0].scores, measured[0].gallery, measured[-1].stopped
    again = all(one.ranked_again for one in measured)
    if not again:
        options.rerank = 0
    report = {
        "run": run.name,
        "data": str(data),
        "fingerprint": reader.fingerprint,
        "split": options.split,
        "captions": texts,
        "images": images,
        "folds": len(measured),
        "left_out": len(missed),
        "left_out_count_as_not_found": not options.seen_only,
        "not_looked_at": missed,
        "rerank": {"top": options.rerank, "by": str(options.rerank_by)} if again else None,
        "ties": "a wrong candidate with an equal score counts as ahead",
        **{method: {k: asdict(m) for k, m in directions.items()} for method, directions in results.items()},
    }
    folder = run if run.is_dir() else run.parent
    written = folder / (name_of(options, reader, images) + ".json")
    write_atomically(written, json.dumps(report, indent=1).encode())
    console.print(f"written: {written}", soft_wrap=True)
    try:
        if draw(scores, gallery, reader, options.pictures, written.with_suffix(".png"), warn):
            console.print(f"written: {written.with_suffix('.png')}", soft_wrap=True)
    except Exception as error:  # whatever goes wrong in drawing, the results stand
        warn(f"the picture could not be drawn ({type(error).__name__}: {error}); the results are complete")
    if stopped:
        raise KeyboardInterrupt
    return report


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    return run_command(lambda given: evaluate(read_arguments(given), open_console()), arguments)
