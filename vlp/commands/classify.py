"""Measure zero-shot classification of pictures.

RUN is a run's folder or one of its weight files. DATA is a folder of pictures (CLASS/IMAGE.png), a data set of ours
whose samples name their class in the fact `class`, or tars in CLIP_benchmark's layout. A class is called as its folder
is (with spaces for underscores), or as --classes FILE says: a line FOLDER<tab>NAME each, or the names alone in the
order of the folders. Every class is put into every template. A dual encoder compares images with the mean embedding of
a class's prompts, a fusion model by the mean score of its image-text matching head. Prints a table, writes
zero_shot-DATA.json and zero_shot-DATA.predictions.jsonl beside the run's weights; after Ctrl-C those of the images that
are done, named -first-N.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

import vlp
from data_pipelines.shards.format import ShardError
from data_pipelines.sources.labelled import LabelledImages, open_labelled, read_lines
from vlp.checkpoints.load import write_atomically
from vlp.commands.command import open_console, options_of, run_command
from vlp.config import ConfigError
from vlp.evaluation.zero_shot import ClassMetrics, class_metrics, class_weights, predictions, prompts
from vlp.inference import TrainedModel
from vlp.interfaces import Regions

TEMPLATES = ["a photo of a {}."]
IMAGENET = "imagenet"
IMAGES_PER_CHUNK = 256
SHOWN = 10  # classes, images left out ... that are listed on the terminal

Classifier = Callable[[list[Regions]], Tensor]


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The run, the data and the options."""
    parser = options_of(
        "classify",
        __doc__,
        ["classify runs/clip pictures", "classify runs/clip data/birds --split test --templates templates.txt"],
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder or one of its weight files")
    parser.add_argument("data", type=Path, metavar="DATA", help="a folder of pictures, a data set, or tars")
    parser.add_argument(
        "--templates",
        type=Path,
        metavar="FILE",
        help="prompts, one a line with {} for the class, or imagenet, the 80 of CLIP's paper (default: DATA's own, if"
        " it has some, else 'a photo of a {}.')",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="names of the classes, or imagenet, CLIP's of ImageNet's 1,000 (default: DATA's own)",
    )
    parser.add_argument("--split", default="", help="of a data set (default: val) or of tars (default: test)")
    parser.add_argument("--fact", default="class", metavar="NAME", help="of a data set, that names a sample's class")
    return parser.read(arguments)


def imagenet(what: str) -> list[str]:
    """CLIP's `templates` for ImageNet, or its names of the `classes`, in the order of their identifiers."""
    import open_clip  # only here, since it takes seconds

    if what == "classes":
        return [*open_clip.IMAGENET_CLASSNAMES]
    return [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]


def lines_of(file: Path, what: str) -> list[str]:
    """The lines of a file; of `imagenet`, if there is no such file, what open_clip has under that name."""
    return imagenet(what) if file == Path(IMAGENET) and not file.exists() else read_lines(file)


def name_classes(data: LabelledImages, file: Path | None) -> list[str]:
    """What the classes are called in prompts."""
    if not file:
        return data.names or [name.replace("_", " ") for name in data.classes]
    lines = lines_of(file, "classes")
    if not any("\t" in line for line in lines):
        if len(lines) != len(data.classes):
            raise ConfigError(f"{file} names {len(lines)} classes, but the data has {len(data.classes)}")
        return lines
    pairs = [line.partition("\t")[::2] for line in lines]
    named = dict(pairs)
    missing = [name for name in data.classes if not named.get(name, "").strip()]
    unknown = [name for name, _ in pairs if name not in data.classes]
    if missing or unknown or len(named) < len(pairs):
        twice = len(pairs) - len(named)
        raise ConfigError(
            f"{file} does not fit the data: without a name {missing[:SHOWN]}, not in the data {unknown[:SHOWN]},"
            f" lines that name a class again: {twice}"
        )
    return [named[name].strip() for name in data.classes]


def same_names(names: list[str], data: LabelledImages) -> list[str]:
    """What to say of classes that share a name."""
    by_name: dict[str, list[str]] = {}
    for name, own in zip(names, data.classes, strict=True):
        by_name.setdefault(" ".join(name.lower().split()), []).append(own)
    return [
        f"{len(own)} classes are called {name!r} ({', '.join(own[:SHOWN])}): nothing tells them apart, so all their"
        " images count as wrong; --classes FILE gives them other names"
        for name, own in by_name.items()
        if len(own) > 1
    ]


def make_classifier(model: TrainedModel, names: list[str], templates: list[str], progress: Progress) -> Classifier:
    """From images to scores of the classes, float32 [I, C]."""
    if not model.dual:
        texts = prompts(names, templates)
        model.matching()
        return lambda images: model.score(texts, images).view(len(names), len(templates), -1).mean(1).t()
    task = progress.add_task(f"embedding {len(names)} classes", total=len(names))
    weights = class_weights(model.embed_texts, names, templates, lambda done: progress.advance(task, done))
    scale = float(model.model.logit_scale.detach().exp())
    return lambda images: scale * model.embed_images(images) @ weights.t()


def classify(
    data: LabelledImages, classifier: Classifier, names: list[str], progress: Progress
) -> tuple[ClassMetrics, list[dict], list[tuple[str, str]], bool]:
    """Metrics, what is said of each image, the images left out with the reason, and whether Ctrl-C came before the
    last, which leaves out the images of the chunk that it came in. `first_is_right`: an image's class is right where of
    equal scores the first counts, as other programs have it.
    """
    task = progress.add_task("classifying images", total=data.count)
    left_out: list[tuple[str, str]] = []
    said: list[dict] = []
    columns: list[tuple[Tensor, Tensor, Tensor]] = []  # rank, predicted class, own class

    def flush(chunk: list[tuple[str, int, Regions]]) -> None:
        labels = torch.tensor([label for _, label, _ in chunk])
        scores = classifier([image for _, _, image in chunk])
        rank, predicted = predictions(scores, labels)
        best = scores.topk(min(5, len(names)), 1)
        for row, (image, label, _) in enumerate(chunk):
            top = zip(best.indices[row].tolist(), best.values[row].tolist(), strict=True)
            said.append(
                {
                    "image": image,
                    "class": names[label],
                    "predicted": names[int(predicted[row])],
                    "first_is_right": int(best.indices[row, 0]) == label,
                    "rank": int(rank[row]),
                    "best": [[names[number], round(score, 5)] for number, score in top],
                }
            )
        columns.append((rank, predicted, labels))

    chunk: list[tuple[str, int, Regions]] = []
    stopped = False
    try:
        for name, label, image in data.read():
            progress.advance(task)
            if isinstance(image, str):
                left_out.append((name, image))
                continue
            chunk.append((name, label, image))
            if len(chunk) == IMAGES_PER_CHUNK:
                flush(chunk)
                chunk = []
        if chunk:
            flush(chunk)
    except KeyboardInterrupt:
        if not columns:
            raise
        stopped = True
    if not columns:
        raise ShardError(
            f"none of {len(left_out)} images can be used; the first: {': '.join((left_out or [('', '')])[0])}"
        )
    rank, predicted, labels = (torch.cat(column) for column in zip(*columns, strict=True))
    return class_metrics(rank, predicted, labels, len(names)), said[: len(rank)], left_out, stopped


def table_of(metrics: ClassMetrics, classes: int, templates: int) -> Table:
    """The results in one table, beside chance."""
    table = Table(title=f"zero-shot: {metrics.images} images, {classes} classes, templates: {templates}")
    table.title_justify = "left"
    table.add_column("")
    for name in ("top-1", "top-5", "mean recall of classes"):
        table.add_column(name, justify="right")
    chance, top_5 = 1 / classes, None if metrics.top_5 is None else 5 / classes
    rows = [("model", metrics.top_1, metrics.top_5, metrics.mean_class_recall), ("chance", chance, top_5, chance)]
    for name, *shares in rows:
        cells = ["-" if share is None else f"{100 * share:.1f}" for share in shares]
        table.add_row(name, *cells, style="bold" if name == "model" else None)
    return table


def worst_classes(metrics: ClassMetrics, names: list[str]) -> Table:
    """The classes that are found least, with what they are taken for."""
    table = Table(title="least recalled classes", title_justify="left")
    for name, side in (("class", "left"), ("images", "right"), ("recall", "right"), ("taken for", "left")):
        table.add_column(name, justify=side, overflow="fold")  # type: ignore[arg-type]
    found = [(recall, number) for number, recall in enumerate(metrics.class_recall) if recall is not None]
    for recall, number in sorted(found)[:SHOWN]:
        taken = [f"{names[other]} {count}" for own, other, count in metrics.confusions if own == number]
        table.add_row(names[number], str(metrics.class_images[number]), f"{100 * recall:.1f}", ", ".join(taken[:3]))
    return table


def evaluate(options: argparse.Namespace, console: Console) -> None:
    """Classify, print, write."""

    def warn(text: str) -> None:
        console.print(text, style="yellow", markup=False, soft_wrap=True)

    run, place = options.run, options.data
    model = vlp.load(run, "cuda" if torch.cuda.is_available() else "cpu")
    data = open_labelled(place, model.loads, options.split, options.fact)
    names = name_classes(data, options.classes)
    templates = lines_of(options.templates, "templates") if options.templates else data.templates or TEMPLATES
    for text in same_names(names, data):
        warn(text)
    began = time.perf_counter()
    with Progress(console=console, transient=True) as progress:
        classifier = make_classifier(model, names, templates, progress)
        metrics, said, left_out, stopped = classify(data, classifier, names, progress)
    for name, reason in left_out[:SHOWN]:
        warn(f"left out: {name}: {reason}")
    if len(left_out) > SHOWN:
        warn(f"left out: {len(left_out)} images in all; the others are in the JSON")
    empty = [name for name, images in zip(names, metrics.class_images, strict=True) if not images]
    if empty:
        more = ", ..." if len(empty) > SHOWN else ""
        warn(f"classes without images, which are in no average: {len(empty)} ({', '.join(empty[:SHOWN])}{more})")
    console.print(table_of(metrics, len(names), len(templates)))
    console.print(worst_classes(metrics, names))
    by_argmax = sum(row["first_is_right"] for row in said) / len(said)
    if by_argmax != metrics.top_1:
        warn(
            f"top-1 is {100 * by_argmax:.1f} % where of equal scores the first class counts, as other programs have it"
        )
    console.print(f"{metrics.images} images in {time.perf_counter() - began:.1f} s; left out: {len(left_out)}")
    report = {
        "run": run.name,
        "data": str(place),
        "split": options.split or None,
        "classes": names,
        "templates": templates,
        "ties": "another class with an equal score counts as ahead",
        **asdict(metrics),
        "top_1_by_argmax": by_argmax,
        "confusions": [[names[own], names[other], count] for own, other, count in metrics.confusions],
        "left_out": left_out,
    }
    parts = ["zero_shot", "" if run.is_dir() else run.stem, place.resolve().name, options.split]
    parts += [file.stem for file in (options.templates, options.classes) if file]
    parts += [f"first-{metrics.images}"] if stopped else []
    folder, name = run if run.is_dir() else run.parent, "-".join(part for part in parts if part)
    write_atomically(folder / f"{name}.json", json.dumps(report, indent=1, ensure_ascii=False).encode())
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in said)
    write_atomically(folder / f"{name}.predictions.jsonl", lines.encode())
    console.print(f"written: {folder / name}.json, {folder / name}.predictions.jsonl", soft_wrap=True)
    if stopped:
        raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    """Run the command; errors that a user can mend are printed without a traceback."""
    return run_command(lambda given: evaluate(read_arguments(given), open_console()), arguments)
