"""Measure what a token decoder draws of embedded scenes, by reading the pictures."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from data_pipelines.scenes.placing import FAMILY, SIDE
from data_pipelines.scenes.reading import truthfulness
from data_pipelines.scenes.scene_reader import read_scene
from data_pipelines.shards.reader import ShardReader
from data_pipelines.sources.source import Source
from vlp.checkpoints.load import write_atomically
from vlp.config import ConfigError
from vlp.inference import TrainedModel
from vlp.interfaces import Images
from vlp.use.pictures import draw
from vlp.writing.settings import Writing

ACROSS, DOWN = 4, 3  # pictures of the page
SHARES = {"captions": "captions true", "entities": "objects found", "relations": "relations true"}


@dataclass
class Drawing:
    """`count`: pictures drawn of each caption, of which the likeliest is measured. Others: see
    `vlp.writing.settings.Writing`, and `vlp.use.pictures.draw`.
    """

    count: int = 1
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    guidance: float | None = None

    def how(self) -> Writing:
        """As writing has them."""
        own = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p, "seed": self.seed}
        return Writing(beams=self.count, search="sample", **own)  # type: ignore[arg-type]  # of these types


def nearest_captions(asked: list[str], known: list[str]) -> list[int]:
    """For each of some captions the number of the known one that shares most words with it, by the Dice coefficient of
    their bags of words (or of signs, where words are not apart); of equal ones the first.
    """
    every = [text.replace(",", " ") for text in [*asked, *known]]
    apart = any(" " in text for text in every)
    bags = [Counter(text.split() if apart else text) for text in every]
    words = {word: n for n, word in enumerate(sorted({word for bag in bags for word in bag}))}
    table = np.zeros((len(bags), len(words)), dtype=np.int16)
    for row, bag in enumerate(bags):
        for word, count in bag.items():
            table[row, words[word]] = count
    ours, theirs = table[: len(asked)], table[len(asked) :]
    sizes = theirs.sum(1)
    return [int((np.minimum(theirs, own).sum(1) / (sizes + own.sum())).argmax()) for own in ours]


def as_scene(pixels: np.ndarray) -> np.ndarray:
    """A picture uint8 [h, w, 3] at the size of scenes."""
    if pixels.shape[:2] == (SIDE, SIDE):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def pictures_of(source: Source, numbers: list[int]) -> list[np.ndarray]:
    """The pictures of samples, as the model's coder sees them, uint8 [s, s, 3]."""
    first = {int(sample): pair for pair, sample in reversed([*enumerate(source.sample_of)])}
    found = []
    for number in numbers:
        regions = source.load(first[number]).regions
        assert regions is not None
        assert regions.pixels is not None
        found.append(regions.pixels.numpy())
    return found


def reproduced(model: TrainedModel, pictures: list[np.ndarray]) -> list[np.ndarray]:
    """What the coder of the model makes of pictures."""
    found: list[np.ndarray] = []
    for first in range(0, len(pictures), 64):
        some = torch.from_numpy(np.stack(pictures[first : first + 64])).to(model.device)
        images = Images(
            ids=torch.arange(len(some)),
            offsets=torch.zeros(len(some) + 1, dtype=torch.int64),
            features=torch.zeros(0, 0),
            boxes=torch.zeros(0, 4),
            pixels=some.flatten(0, 2),
            sizes=[(some.shape[1], some.shape[2])] * len(some),
        )
        with torch.inference_mode():
            found += [*model.model.pictures.decode(model.model.pictures.encode(images)).cpu().numpy()]
    return found


def measured(
    model: TrainedModel, source: Source, training: Source, options: Drawing, most: int, console: Console
) -> tuple[dict[str, Any], list[np.ndarray], list[str]]:
    """Draw the first captions of the first scenes of a split, and read what became of them.

    Each row of the report says of some pictures which share of the captions, of the objects that they name and of the
    relations that they claim, is true of them: of the true pictures (what the reader can see), of another scene's
    (chance), of one with the same words dealt to other objects, of the training picture whose caption shares most words
    (what a memory gives), of the true ones as the coder reproduces them (what it loses), and of those that were drawn.

    Raises:
        ConfigError: the data are no scenes, or too few.
    """
    reader = source.reader
    numbers = [*range(min(most, len(reader) // FAMILY * FAMILY))]  # of whole families, so that each has siblings
    facts = [reader.facts(number) for number in numbers]
    if not all("objects" in own for own in facts):
        raise ConfigError(
            f"{reader.folder} has pictures of which it is not known what is in them; drawings are measured on scenes"
        )
    if len(facts) <= FAMILY:
        raise ConfigError(f"split {reader.split} has {len(facts)} scenes; more than {FAMILY} are needed")
    language, texts = facts[0].get("language", "en"), [own["captions"][0] for own in facts]
    true = pictures_of(source, numbers)
    known = [(number, text) for number in range(len(training.reader)) for text in captions_of(training.reader, number)]
    near = [known[n][0] for n in nearest_captions(texts, [text for _, text in known])]
    rows = {
        "true pictures": true,
        "other scenes": true[FAMILY:] + true[:FAMILY],
        "same words, dealt otherwise": pictures_of(source, [sibling(number) for number in numbers]),
        "nearest of training": pictures_of(training, near),
        "reproduced by the coder": reproduced(model, true),
    }
    drawn = draw(model, texts, options.how(), options.guidance)
    rows["drawn"] = [own[0].pixels.numpy() for own in drawn]
    report: dict[str, Any] = {"captions": len(texts)}
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("reading pictures", total=len(rows) * len(texts))
        for name, pictures in rows.items():
            scenes = []
            for picture in pictures:
                scenes.append(read_scene(as_scene(picture)))
                progress.advance(bar)
            shares = truthfulness(zip(texts, scenes, strict=True), language).shares()
            report[name] = {**shares, "objects": sum(len(scene.objects) for scene in scenes) / len(scenes)}
    return report, rows["drawn"], texts


def captions_of(reader: ShardReader, number: int) -> list[str]:
    """The captions of a sample."""
    captions: list[str] = reader.facts(number)["captions"]
    return captions


def sibling(number: int) -> int:
    """Another scene of the family of a scene, by their numbers."""
    first = number // FAMILY * FAMILY
    return first + (number - first + 1) % FAMILY


def table_of(report: dict[str, Any], title: str) -> Table:
    """Shares in percent."""
    table = Table("pictures", *SHARES.values(), "objects read", title=title, title_justify="left")
    for name, row in report.items():
        if isinstance(row, dict):
            table.add_row(name, *(f"{100 * row[share]:.1f}" for share in SHARES), f"{row['objects']:.2f}")
    return table


def draw_page(pictures: list[np.ndarray], texts: list[str], path: Path) -> None:
    """The first pictures, each above its caption."""
    figure = Figure(figsize=(3.2 * ACROSS, 3.9 * DOWN), layout="constrained")
    for number, axes in enumerate(figure.subplots(DOWN, ACROSS).flat):
        axes.axis("off")
        if number < len(texts):
            axes.imshow(pictures[number])
            axes.set_title(textwrap.fill(texts[number], 34), fontsize=9, y=-0.02, va="top")
    figure.savefig(path, dpi=100)


def evaluate_pictures(
    model: TrainedModel, source: Source, training: Source, options: Drawing, most: int, folder: Path, console: Console
) -> dict[str, Any]:
    """Measure, print, and write generation-SPLIT.json and a page of pictures beside the run's weights.

    Raises:
        ConfigError: see `measured`.
    """
    report, pictures, texts = measured(model, source, training, options, most, console)
    name = f"generation-{source.reader.split}"
    console.print(table_of(report, f"{len(texts)} captions, split {source.reader.split} of {source.reader.folder}"))
    draw_page(pictures, texts, folder / f"{name}.png")
    content = {"data": str(source.reader.folder), "fingerprint": source.reader.fingerprint, **asdict(options), **report}
    write_atomically(folder / f"{name}.json", json.dumps(content, indent=1).encode())
    console.print(f"written: {folder / name}.json and .png", soft_wrap=True, markup=False)
    return content
